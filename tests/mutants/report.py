"""The HTML page."""

from tests.mutants import Fault

FAULTS = [
    Fault("jobs/view/markup.py",
          'read_bytes(path, MAX_PICTURE, inside)',
          'read_bytes(path, 2 * MAX_PICTURE, inside)',
          ("tests/view/test_report.py::test_samples_from_the_first_to_the_last_and_real_slices_behind_them",)),
    Fault("jobs/view/report.py",
          'name * (len(runs) > 1)',
          'name * (len(runs) > 2)',
          ("tests/view/test_report.py::test_the_verdict_on_each_run_comes_first_then_pictures_then_curves",)),
    Fault("jobs/view/report.py",
          'if path.name[0].isdigit()',
          'if True',
          ("tests/view/test_report.py::test_samples_from_the_first_to_the_last_and_real_slices_behind_them",)),
    Fault("jobs/view/plots.py",
          'return [kimg for kimg in starts if kimg]',
          'return starts',
          ("tests/view/test_report.py::test_restarts_are_later_attempts",)),
    Fault("jobs/view/report.py",
          'state = RunState.DONE if run.done() else',
          'state = RunState.DONE if not run.done() else',
          ("tests/view/test_report.py::test_the_page_has_all_and_loads_nothing",)),
    Fault("jobs/view/report.py",
          '"hours on a CPU" if device == "cpu" else "GPU hours" if device',
          '"hours on a CPU" if device != "cpu" else "GPU hours" if device',
          ("tests/view/test_report.py::test_the_page_has_all_and_loads_nothing",)),
    Fault("jobs/view/report.py",
          'world * max(status["updated"] - open_start["time"], 0)',
          'max(status["updated"] - open_start["time"], 0)',
          ("tests/view/test_report.py::test_the_page_has_all_and_loads_nothing",)),
]  # fmt: skip
