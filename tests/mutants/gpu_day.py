"""What benchmarks/gpu.sh must not lose of a lent hour: see tests/mutants/__init__.py."""

from tests.mutants import Fault

DAY = "tests/scripts/test_gpu_day.py::"
FAULTS = [
    Fault("benchmarks/machine.py",
          'return f"{package} is not installed"',
          'raise',
          (f"{DAY}test_versions_of_what_is_not_installed",)),
    Fault("benchmarks/machine.py",
          'if state["git_dirty"] else ""',
          'if False else ""',
          (f"{DAY}test_a_figure_names_the_code_that_it_is_of",)),
    Fault("benchmarks/machine.py",
          'absent[name] = error.line()',
          'raise',
          (f"{DAY}test_a_peer_that_is_not_there_or_breaks_is_a_line_of_the_table",)),
    Fault("benchmarks/gpu.py",
          'kept = file.with_suffix(".failed" if reason else ".md")',
          'kept = file',
          (f"{DAY}test_a_piece_that_fails_is_tried_again_and_one_that_is_there_is_not",)),
    Fault("benchmarks/gpu.py",
          'signal.setitimer(signal.ITIMER_REAL, max(day.left(), 1.0))',
          'signal.setitimer(signal.ITIMER_REAL, 0)',
          (f"{DAY}test_what_finds_no_time_is_left_and_what_hangs_is_given_up",)),
    Fault("benchmarks/gpu_parts.py",
          'self.basis = vectors[:, -channels:]',
          'self.basis = vectors[:, :channels]',
          (f"{DAY}test_the_linear_codec_is_the_best_of_its_size",)),
]  # fmt: skip
