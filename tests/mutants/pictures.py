"""Curves, grids, sizes of pictures, and what the page and TensorBoard show first."""

from tests.mutants import Fault

LOG, WRITTEN = "tests/view/test_log.py::", "tests/predict/test_written.py::"
REPORT = "tests/view/test_report.py::"
FAULTS = [
    Fault(
        "jobs/view/plots.py",
        "color = i if len(runs) > 1 else",
        "color = j if len(runs) > 1 else",
        (LOG + "test_a_colour_is_a_run_and_a_kind_of_line_a_column",),
    ),
    Fault(
        "jobs/view/plots.py",
        "if last[name] or not c.off_at_zero}",
        "}",
        (LOG + "test_panels_hold_the_columns_of_their_kind",),
    ),
    Fault(
        "jobs/view/plots.py",
        "kimg = length / 1000",
        "kimg = length / 100",
        (LOG + "test_curves_are_values_over_kimg_inside_the_window_with_lines_where_attempts_began",),
    ),
    Fault(
        "jobs/view/plots.py",
        "picture = draw_losses(runs, Path(file).suffix[1:].lower())",
        "picture = draw_losses(runs)",
        (LOG + "test_plot_of_several_runs_and_a_window_in_the_format_of_its_suffix",),
    ),
    Fault(
        "jobs/run/attempt.py",
        'after["slices"] = slices',
        'after["slices"] = slices + 1',
        (
            "tests/scripts/test_gan_main.py::test_main_hands_its_flags_to_the_data_and_writes_where_its_weights_come_from",
        ),
    ),
    Fault(
        "jobs/view/grids.py",
        "images.repeat(scale, -2).repeat(scale, -1)",
        "images.repeat(scale, -1)",
        (WRITTEN + "test_pictures_for_people_are_enlarged_and_slices_are_not",),
    ),
    Fault(
        "jobs/predict/direction.py",
        "model.original(images), steps",
        "images, steps",
        (WRITTEN + "test_a_command_shows_slices_at_their_own_size_unless_asked_for_squares",),
    ),
    Fault(
        "jobs/view/report.py",
        "(rest if len(found) < 2 else rows)",
        "(rest if len(found) < 1 else rows)",
        (REPORT + "test_what_two_runs_have_stands_side_by_side_and_how_they_differ",),
    ),
    Fault(
        "jobs/view/report.py",
        'run.read_status().get("verdict")',
        'run.read_status().get("reason")',
        (REPORT + "test_the_verdict_on_each_run_comes_first_then_pictures_then_curves",),
    ),
    Fault(
        "jobs/view/tensorboard.py",
        'f"{GROUPS.index(group) + 1}_" if group in GROUPS else ""',
        '""',
        (LOG + "test_columns_of_a_kind_stand_together_in_tensorboard",),
    ),
    Fault(
        "jobs/view/grids.py",
        'parts["real slices"] = picture',
        'parts["samples"] = picture',
        (LOG + "test_real_slices_stand_beside_the_samples",),
    ),
    Fault(
        "jobs/view/tensorboard.py",
        "add_summary(given, nimg)",
        "flush()",
        (LOG + "test_the_configuration_is_a_text_and_a_row_of_the_table_of_runs",),
    ),
    Fault(
        "jobs/cluster/serve.py",
        "link(Path(folder), runs or run_folders(RUNS))",
        "link(Path(folder), runs)",
        ("tests/cluster/test_launch_rules.py::test_tensorboard_shows_all_runs_or_those_named",),
    ),
]
