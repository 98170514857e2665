"""Folders of predict.py, pictures of named seeds, and their formats."""

from tests.mutants import Fault

FOLDERS = "tests/predict/test_folders.py::"

FAULTS = [
    Fault(
        "jobs/predict/output.py",
        'words.append(f"{nimg / 1000:g}kimg")',
        'words.append("kimg")',
        (FOLDERS + "test_other_weights_and_settings_have_folders_of_their_own",),
    ),
    Fault(
        "jobs/predict/output.py",
        "            if not out.other(nimg, settings):\n                return out",
        "            return out",
        (FOLDERS + "test_what_a_name_cannot_tell_apart_has_a_number",),
    ),
    Fault(
        "jobs/predict/output.py",
        'GROWS = {"number", "scale"}',
        'GROWS = {"number"}',
        (FOLDERS + "test_more_pictures_a_larger_grid_and_one_file_of_all_stay_in_the_folder",),
    ),
    Fault(
        "jobs/predict/output.py",
        "if kimg[0] != kimg[1] else",
        "if kimg[0] == kimg[1] else",
        (FOLDERS + "test_a_named_folder_of_other_settings_is_refused_in_plain_words",),
    ),
    Fault(
        "jobs/predict/output.py",
        'settings if self.command in UNSCALED else {**settings, "scale": self.scale}',
        "settings",
        (FOLDERS + "test_a_named_folder_of_other_settings_is_refused_in_plain_words",),
    ),
    Fault(
        "jobs/predict/output.py",
        'says what made it" if found else ""',
        'says what made it" if False else ""',
        (FOLDERS + "test_files_of_strangers_are_not_replaced",),
    ),
    Fault(
        "jobs/predict/output.py",
        r'r"interpolate\.gif|strip\.png"',
        r'r"interpolate\.gif"',
        (FOLDERS + "test_own_files_are_all_that_a_command_writes",),
    ),
    Fault(
        "jobs/run/predictions.py",
        "(path.stat().st_mtime_ns, path)",
        "path",
        (FOLDERS + "test_readers_find_the_newest",),
    ),
    Fault(
        "jobs/predict/card.py",
        "for path in made(run.path, command))",
        "for path in made(run.path, command)[:1])",
        (FOLDERS + "test_a_card_has_the_figures_of_its_own_weights_though_others_are_newer",),
    ),
    Fault(
        "jobs/predict/trained.py",
        "((index, 0) if seed is None",
        "((0, index) if seed is None",
        (FOLDERS + "test_a_seed_by_name_is_the_first_picture_of_that_seed",),
    ),
    Fault(
        "jobs/predict/generate.py",
        'sorted({*numbers, *seeds(stored["seeds"])})',
        "sorted(numbers)",
        (FOLDERS + "test_seeds_take_classes_by_themselves_and_more_of_them_join_the_others",),
    ),
    Fault(
        "jobs/predict/generate.py",
        "write_npz(archive, job, there)",
        "write_npz(archive, job, numbers)",
        (FOLDERS + "test_table_and_npz_hold_the_same_pictures_in_the_same_order",),
    ),
    Fault(
        "jobs/predict/generate.py",
        "return [i for i in claimed if i not in gone]",
        "return list(claimed)",
        (FOLDERS + "test_the_table_lists_what_is_there_after_an_interruption",),
    ),
    Fault(
        "data/build.py",
        'meta["plane"] = source.plane',
        'meta["plane"] = ""',
        (FOLDERS + "test_a_pack_says_in_which_plane_its_slices_were_cut",),
    ),
    Fault(
        "jobs/predict/flags.py",
        "if first > last:",
        "if first < 0:",
        (FOLDERS + "test_wrong_seeds",),
    ),
    Fault(
        "jobs/predict/forms.py",
        "np.rint(image[0] * 65535)",
        "257 * np.rint(image[0] * 255)",
        (FOLDERS + "test_formats_hold_the_networks_own_values_and_the_same_pictures",),
    ),
    Fault(
        "jobs/predict/forms.py",
        "image.transpose(2, 1, 0)  # (W, H, C)",
        "image.transpose(2, 1, 0)[:, ::-1]  # (W, H, C)",
        (FOLDERS + "test_a_nifti_slice_is_cut_from_itself_upright",),
    ),
    Fault(
        "jobs/predict/forms.py",
        "return len(file.read(expected + 1)) == expected",
        "return True",
        (FOLDERS + "test_an_interrupted_generate_goes_on_in_every_format",),
    ),
    Fault(
        "jobs/predict/trained.py",
        'return mm * ((geometry["crop"] or geometry["square"]) / geometry["resolution"]',
        'return mm * (geometry["square"] / geometry["square"]',
        (FOLDERS + "test_millimetres_of_a_pixel",),
    ),
    Fault(
        "data/packfile.py",
        "whole = whole.clip(0, 1)",
        "whole = whole.clip(-9, 9)",
        (FOLDERS + "test_floats_at_the_slices_own_size",),
    ),
]
