"""Phantoms of people: what each attribute does."""

from tests.mutants import Fault

PEOPLE = "tests/data/test_phantom_people.py::"

FAULTS = [
    Fault("data/phantom_people.py",
          ' + DISEASE * label\n',
          '\n',
          (PEOPLE + "test_atrophy_grows_evenly_with_age_and_ad_adds_a_third",)),
    Fault("data/phantom_people.py",
          'size = (0.5 + loss) * ',
          'size = (0.5 + loss) ** 2 * ',
          (PEOPLE + "test_atrophy_grows_evenly_with_age_and_ad_adds_a_third",)),
    Fault("data/phantom_people.py",
          'half_width=half_length * ',
          'half_width=HEAD["F"] * head_size(who.slice) * ',
          (PEOPLE + "test_sex_is_the_size_of_the_head_and_not_the_share_of_the_ventricles",)),
    Fault("data/phantom_people.py",
          'spots[: who.lesions]',
          'spots[who.lesions :]',
          (PEOPLE + "test_lesions_are_dark_spots_and_the_first_stay_where_they_are",)),
    Fault("data/phantom_people.py",
          ' + 1.5 * who.slice**2',
          '',
          (PEOPLE + "test_planes_go_from_the_basal_ganglia_to_near_the_vertex_without_a_jump",)),
    Fault("data/phantom_people.py",
          '(cells | (person or {}))',
          '((person or {}) | cells)',
          (PEOPLE + "test_each_attribute_changes_its_anatomy_alone",)),
]  # fmt: skip
