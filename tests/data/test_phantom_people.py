"""Phantoms of people: each attribute is the anatomy that it says, that alone, and rulers read it off the picture."""

from dataclasses import fields

import numpy as np
import pytest
from rulers import Rulers, blurred, person_truth, ventricle_area

from data import phantom_people
from data.phantom import phantom_label, phantom_slice
from data.phantom_people import COLUMNS, person_slice, phantom_person

SEED = 11
COUNT = 160


@pytest.fixture(scope="module")
def slices():
    return np.stack([person_slice(SEED, i, 64) for i in range(COUNT)])


@pytest.fixture(scope="module")
def people():
    """Arrays by column, sex as True for a man, and the class and truths of the slices beside them."""
    rows = [phantom_person(SEED, i) for i in range(COUNT)]
    found = {name: np.array([float(row[name]) for row in rows]) for name in ("age", "slice", "lesions")}
    found |= {"man": np.array([row["sex"] == "M" for row in rows])}
    found |= {"label": np.array([phantom_label(SEED, i) for i in range(COUNT)])}
    truths = [person_truth(SEED, i, grid=64) for i in range(COUNT)]
    return found | {f"true_{name}": np.array([truth[name] for truth in truths]) for name in truths[0]}


@pytest.fixture(scope="module", params=["sharp", "blurred"])
def measured(request, slices):
    images = slices if request.param == "sharp" else blurred(slices)
    return Rulers.fit().measure(images)


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


def drawn(index, label=0, **person):
    """The slice's Brain, with some attributes forced."""
    return phantom_people._draw_person(SEED, index, label, person)[1]


def changed(index, one, other):
    """Names of what differs between the brains of two persons."""
    a, b = drawn(index, **one), drawn(index, **other)
    return {f.name for f in fields(a) if not np.array_equal(getattr(a, f.name), getattr(b, f.name))}


# --- the table --------------------------------------------------------------------------------------------------------
def test_a_person_is_a_row_of_a_table():
    rows = [phantom_person(SEED, i) for i in range(600)]
    assert all(tuple(row) == COLUMNS and all(isinstance(cell, str) for cell in row.values()) for row in rows)
    age, plane, lesions = (np.array([float(row[name]) for row in rows]) for name in ("age", "slice", "lesions"))
    assert 55 <= age.min() < 56 and 89 < age.max() <= 90 and age.mean() == pytest.approx(72.5, abs=1.5)
    assert 0 <= plane.min() < 0.02 and 0.98 < plane.max() <= 1 and plane.mean() == pytest.approx(0.5, abs=0.04)
    assert set(lesions) == set(range(21)) and 0.2 < correlation(age, lesions) < 0.6
    man = np.array([row["sex"] == "M" for row in rows])
    labels = np.array([phantom_label(SEED, i) for i in range(600)])
    assert man.sum() == 300 and {row["sex"] for row in rows} == {"F", "M"}
    pairs = [(a, b) for a in (age, plane, man, labels) for b in (age, plane, man, labels) if a is not b]
    assert max(abs(correlation(a, b)) for a, b in pairs) < 0.12
    assert rows[5] == phantom_person(SEED, 5) != phantom_person(SEED + 1, 5)


@pytest.mark.parametrize(
    ("person", "message"),
    [
        ({"slice": 1.2}, "slice"), ({"age": "x"}, "numbers"), ({"sex": "X"}, "sex"), ({"lesions": 21}, "lesions"),
        ({"age": 12}, "age"), ({"weight": 70}, "weight"),
    ],
)  # fmt: skip
def test_wrong_persons_are_named(person, message):
    with pytest.raises(ValueError, match=message):
        person_slice(SEED, 0, 64, person=person)
    with pytest.raises(ValueError, match="label"):
        person_slice(SEED, 0, 64, label=2)


# --- one attribute, one change ----------------------------------------------------------------------------------------
def test_a_slice_is_a_pure_function_of_seed_index_and_person(slices):
    np.random.seed(0)
    again = [person_slice(SEED, i, 64, phantom_label(SEED, i), phantom_person(SEED, i)) for i in reversed(range(4))]
    assert np.array_equal(again[::-1], slices[:4]) and slices.dtype == np.uint8
    older = dict(phantom_person(SEED, 1), age="88.0")
    assert np.array_equal(person_slice(SEED, 1, 32, person=older), person_slice(SEED, 1, 32, person={"age": 88}))
    assert not np.array_equal(slices[0], phantom_slice(SEED, 0, 64))
    assert person_slice(SEED, 0, 48).shape == (48, 48)


def test_each_attribute_changes_its_anatomy_alone():
    atrophy = {"cortex", "sulcus", "ventricle", "third"}
    for i in range(3):
        assert changed(i, {"age": 60}, {"age": 80}) == atrophy
        assert changed(i, {"label": 0}, {"label": 1}) == atrophy | {"label"}
        assert changed(i, {"sex": "F"}, {"sex": "M"}) == {"half_length", "half_width", "cortex", "sulcus", "third"}
        assert changed(i, {"slice": 0.2}, {"slice": 0.5}) == {
            "half_length", "half_width", "level", "taper", "ventricle"}  # fmt: skip
        assert changed(i, {"lesions": 2}, {"lesions": 9}) == set()


def test_atrophy_grows_evenly_with_age_and_ad_adds_a_third():
    ages = np.array([55, 67, 78, 90])
    for index, plane in ((0, 0.1), (1, 0.4), (2, 0.55)):
        share = np.array([person_truth(SEED, index, 0, {"age": a, "slice": plane})["ventricles"] for a in ages])
        assert correlation(ages, share) > 0.995 and share[-1] > 2.5 * share[0]
        ill = person_truth(SEED, index, 1, {"age": 67, "slice": plane})["ventricles"]
        as_old = np.interp(67 + 35 / 3, ages, share)
        assert ill == pytest.approx(as_old, rel=0.05)
        young, old = drawn(index, age=55), drawn(index, age=90)
        assert old.sulcus > 1.5 * young.sulcus and old.cortex < young.cortex


def test_sex_is_the_size_of_the_head_and_not_the_share_of_the_ventricles():
    for index in range(4):
        woman, man = (person_truth(SEED, index, 0, {"sex": sex, "slice": 0.3}) for sex in "FM")
        assert 1.08 < man["head"] / woman["head"] < 1.10
        assert man["ventricles"] == pytest.approx(woman["ventricles"], rel=0.04)
        a, b = drawn(index, sex="F"), drawn(index, sex="M")
        assert b.half_width / a.half_width == pytest.approx(b.half_length / a.half_length)


def test_planes_go_from_the_basal_ganglia_to_near_the_vertex_without_a_jump():
    planes = np.linspace(0, 1, 31)
    images = np.stack([person_slice(SEED, 5, 64, 0, {"slice": plane, "lesions": 0}) for plane in planes]).astype(float)
    step = np.abs(np.diff(images, axis=0)).mean(axis=(1, 2))
    assert step.max() < 2.5 * np.median(step)
    area = (images > 20).mean(axis=(1, 2))
    assert (np.diff(area) < 0.005).all() and area[-1] < 0.55 * area[0]
    truths = [person_truth(SEED, 5, 0, {"slice": plane}, grid=64)["ventricles"] for plane in (0.0, 0.5, 0.7, 1.0)]
    assert min(truths[:2]) > 0.015 and max(truths[2:]) == 0
    # The fissure has grown through the whole length: along the midline the vertex is grey or darker.
    brain = drawn(5, slice=1.0)
    x, y = (brain.center * [32, -32] + 32).astype(int)
    middle = images[:, y - 8 : y + 9, x - 2 : x + 3].min(axis=2).mean(axis=1) / np.percentile(images[images > 12], 90)
    assert middle[-1] < 0.55 and middle[19:24].max() > 0.64, middle


def test_lesions_are_dark_spots_and_the_first_stay_where_they_are():
    for index, plane in ((0, 0.1), (3, 0.4), (6, 0.8)):
        none, three, ten = (
            person_slice(SEED, index, 64, 0, {"slice": plane, "lesions": n}).astype(float) for n in (0, 3, 10)
        )
        some, more = none - three, three - ten
        assert some.min() >= 0 and more.min() >= 0
        assert (some > 40).sum() >= 3 and 6 < (some > 0).sum() < 60
        assert 1.5 * some.sum() < more.sum()


# --- rulers -----------------------------------------------------------------------------------------------------------
def test_truth_age_explains_the_ventricles_of_a_plane(people):
    seen = people["slice"] < 0.6
    share, plane, age = people["true_ventricles"], people["slice"], people["true_age"]
    expected = np.polyval(np.polyfit(plane[seen], (share / (age - 37))[seen], 4), plane)
    assert correlation((share / expected)[seen], age[seen]) > 0.96


def test_rulers_read_the_plane(measured, people):
    error = np.abs(measured["slice"] - people["slice"])
    assert (error < 0.1).mean() >= 0.97 and error.mean() < 0.035


def test_rulers_read_the_age(measured, people):
    seen = people["slice"] < 0.6
    assert correlation(measured["age"][seen], people["true_age"][seen]) > 0.94
    for label in (0, 1):
        group = seen & (people["label"] == label)
        assert correlation(measured["age"][group], people["age"][group]) > 0.93
    assert 0.85 < np.polyfit(people["true_age"][seen], measured["age"][seen], 1)[0] < 1.05


def test_rulers_read_the_ventricles(measured, people):
    assert correlation(measured["ventricles"], people["true_ventricles"]) > 0.98
    assert np.abs(measured["ventricles"] - people["true_ventricles"]).mean() < 0.004


def test_rulers_tell_men_from_women_by_their_heads(measured, people):
    men, women = measured["head"][people["man"]], measured["head"][~people["man"]]
    assert (men[:, None] > women).mean() > 0.93
    assert abs(correlation(measured["head"] - people["true_head"], people["slice"])) < 0.3


def test_rulers_read_the_lesions(measured, people):
    assert correlation(measured["lesions"], people["lesions"]) > 0.78


def test_the_plain_area_of_ventricles_follows_the_truth(slices, people):
    seen = people["slice"] < 0.6
    for images, least in ((slices, 0.88), (blurred(slices), 0.84)):
        area = ventricle_area(images)
        assert correlation(area, people["true_ventricles"]) > least
        assert correlation(area[seen], people["true_age"][seen]) > 0.9
    assert ventricle_area(np.zeros((1, 64, 64), np.uint8)) == [0.0]


def test_rulers_take_anything_of_their_resolution():
    rulers = Rulers.fit()
    strange = np.stack([np.zeros((64, 64)), np.full((64, 64), 255), np.eye(64) * 200]).astype(np.uint8)
    assert all(np.isfinite(values).all() for values in rulers.measure(strange).values())
    image = person_slice(SEED, 2, 64)[None]
    assert rulers.age(image, [1]) == pytest.approx(rulers.age(image) - 35 / 3)
    with pytest.raises(ValueError, match="32"):
        rulers.slice(np.zeros((1, 32, 32), np.uint8))
