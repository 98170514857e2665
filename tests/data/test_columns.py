"""Columns of a table become what a network is told: numbers, levels, unknown cells, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.build import Choices
from data.columns import Column, column_of, columns_of, describe, same_column, values_of
from data.pack import ensure_pack
from data.packfile import open_pack
from data.walk import DataError

AGE, SEX = Column("age", (), 70.0, 10.0, 55.0, 90.0), Column("sex", ("F", "M"))


def pack_of(columns, classes=("NC", "AD"), labels=None):
    count = len(next(iter(columns.values())))
    labels = np.arange(count) % 2 if labels is None else np.array(labels)
    return SimpleNamespace(columns=columns, classes=list(classes), labels=labels)


def test_cells_become_values_and_texts_again():
    assert AGE.parse("72.5") == 72.5 and AGE.text(72.5) == "72.5"
    assert SEX.parse("M") == 1 and SEX.parse("female") == 0 and SEX.text(1.0) == "M"
    assert all(np.isnan(column.parse(text)) for column in (AGE, SEX) for text in ("", "unknown", "n/a", "NaN"))
    assert AGE.text(float("nan")) == "" and AGE.words() == "age 55 to 90" and SEX.words() == "sex F, M"
    for column, text in ((AGE, "old"), (AGE, "inf"), (SEX, "X"), (SEX, "0")):
        with pytest.raises(ValueError):
            column.parse(text)


def test_numbers_are_standardised_by_known_cells_and_two_values_are_levels():
    said = []
    pack = pack_of({"age": ["60", "80", "", "100"], "sex": ["Male", "f", "F", ""], "apoe": ["0", "1", "1", "0"]})
    age, sex, apoe, group = describe(pack, ["age", "sex", "apoe", "class"], said.append)
    assert (age.mean, age.low, age.high, age.levels) == (80.0, 60.0, 100.0, ())
    assert age.std == pytest.approx(np.std([60, 80, 100])) and sex.levels == ("F", "M") and apoe.levels == ("0", "1")
    assert group.levels == ("NC", "AD")
    values = values_of(pack, [age, sex, apoe, group])
    assert values.dtype == np.float32
    expected = [[60, 1, 0, 0], [80, 0, 1, 1], [np.nan, 0, 1, 0], [100, np.nan, 0, 1]]
    assert np.array_equal(values, np.array(expected, np.float32), equal_nan=True)
    assert said[0] == "condition age 60 to 100; unknown of 1 of 4 slices" and said[3] == "condition class NC, AD"


def test_a_level_that_training_has_not_seen_is_unknown_in_held_out_slices():
    held = pack_of({"sex": ["F", "X"], "age": ["70", "71"]})
    assert np.isnan(values_of(held, [SEX])[1, 0]) and np.isnan(values_of(pack_of({"b": ["1", "2"]}), [SEX])).all()


@pytest.mark.parametrize(
    ("columns", "name", "text"),
    [
        ({"age": ["60", "70"]}, "weight", "no such column; the data have class, age"),
        ({"age": ["60", "60"]}, "age", "only says 60 of all slices"),
        ({"age": ["", ""]}, "age", "says nothing of all slices"),
    ],
)
def test_a_column_that_tells_nothing_is_refused(columns, name, text):
    with pytest.raises(DataError, match=text):
        describe(pack_of(columns), [name], lambda line: None)


def test_a_pack_keeps_what_its_run_is_told_and_nothing_that_could_name_people():
    rows = [(("name", f"person {i}"), ("Age", f"{i}"), ("site", f"s{i % 3}"), ("M/F", "n/a")) for i in range(40)]
    kept = columns_of([*rows, ()], "class,age,sex")
    assert list(kept) == ["age", "sex"] and kept["age"] == [*map(str, range(40)), ""] and kept["sex"] == [""] * 41
    assert columns_of(rows, "") == {}
    with pytest.raises(DataError, match="--condition name: it has 40 different texts"):
        columns_of(rows, "name")
    rows[7] = (("Age", "89+"),)
    with pytest.raises(DataError, match=r"--condition age: '89\+' is no number"):
        columns_of(rows, "age")
    rows[7] = (("Age", "Unknown"),)
    assert columns_of(rows, "age")["age"][7] == ""


def test_a_column_is_found_by_its_name_before_any_that_means_the_same():
    assert column_of(["age", "Age at visit"], "age") == "age" and column_of(["Age", "M/F"], "sex") == "M/F"
    assert column_of(["Age at visit"], "age") == "Age at visit" and column_of(["weight"], "age") == ""
    with pytest.raises(DataError, match="sex may be each of the columns M/F, gender"):
        column_of(["M/F", "gender"], "sex")
    assert same_column("PTGENDER", "sex") and same_column("CDGLOBAL", "cdr")
    assert not same_column("age", "sex") and not same_column("mean age", "age")


def test_classes_that_are_called_like_numbers_or_like_nothing_stay_classes():
    pack = pack_of({"age": ["1", "2", "3"]}, classes=("1", "2", "NA"), labels=[0, 1, 2])
    for classes in (("1", "2", "NA"), ("10", "20", "30")):
        pack.classes = list(classes)
        (group,) = describe(pack, ["class"], lambda line: None)
        assert group.levels == classes and values_of(pack, [group])[:, 0].tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four people of two classes with five slices each, and a table in which the age of one is missing."""
    folder = tmp_path_factory.mktemp("people")
    for k in range(4):
        for z in range(5):
            file = folder / "train" / ("AD", "NC")[k % 2] / f"p{k}_{10 * z}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([k, z]).integers(0, 255, (40, 40), np.uint8)
            Image.fromarray(noise).save(file)
    lines = [f"p{k},{a},{s}" for k, a, s in ((0, 61, "F"), (1, 72, "M"), (2, "n/a", "F"), (3, 83, "M"))]
    (folder / "people.csv").write_text("person,Age,sex\n" + "\n".join(lines) + "\n")
    return folder


def test_a_pack_keeps_the_table_and_the_place_of_each_slice(folder, tmp_path):
    choices = Choices(table=str(folder / "people.csv"))
    how = dict(resolution=32, cache_dir=tmp_path, choices=choices, log=lambda text: None)
    pack = ensure_pack(str(folder), condition="age,slice", **how)
    again = open_pack(pack.path, verify=True)
    assert again.columns == pack.columns and set(pack.columns) == {"age", "slice"}
    for i, name in enumerate(pack.names):
        person, z = name.rpartition("/")[2].removesuffix(".png").split("_")
        assert pack.columns["slice"][i] == f"{int(z) / 40:.4g}"
        assert pack.columns["age"][i] == {"p0": "61", "p1": "72", "p2": "", "p3": "83"}[person]
    bare = ensure_pack(str(folder), **how)
    assert not bare.columns and bare.digest == pack.digest and bare.path != pack.path


@pytest.mark.parametrize("columns", ['{"age": ["1"]}', '{"age": [1, 2]}', '[["a"]]', '{"a\\u0007": []}', '"x"'])
def test_a_strangers_pack_with_odd_columns_is_refused(columns):
    from data.packfile import _are_columns

    assert not _are_columns(json.loads(columns), 2) and _are_columns({"age": ["1", ""]}, 2)


def test_phantoms_of_people_say_what_they_are(tmp_path):
    how = dict(resolution=32, cache_dir=tmp_path, log=lambda text: None)
    people = ensure_pack("phantom:12:people", condition="age,sex,slice,lesions", **how)
    plain = ensure_pack("phantom:12", **how)
    assert set(people.columns) == {"age", "sex", "slice", "lesions"} and not plain.columns
    assert people.digest != plain.digest and (people.labels == plain.labels).all()
    with pytest.raises(DataError, match="phantom:N:people"):
        ensure_pack("phantom:12:persons", **how)
