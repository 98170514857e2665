"""What the versions of packages need."""

from tests.mutants import Fault

FAULTS = [
    Fault("jobs/config/rules.py",
          'isinstance(value, str) and "\\0" in value',
          'isinstance(value, str) and "\\n" in value',
          ("tests/house/test_versions.py::test_a_nul_in_a_flag_is_refused_on_every_python",)),
    Fault("data/build.py",
          '    disable = True  # of one that Ctrl-C',
          '    leave = True  # of one that Ctrl-C',
          ("tests/house/test_versions.py::test_a_bar_that_is_interrupted_while_it_is_made_ends_quietly",)),
    Fault("jobs/venv.sh",
          'sys.exit(sys.version_info < (3, 11))',
          'sys.exit(sys.version_info > (3, 11))',
          ("tests/house/test_versions.py::test_any_python_that_runs_and_is_new_enough",)),
    Fault("jobs/venv.sh",
          'if [ -n "$candidate" ] && "$candidate" -c "$check" 2>/dev/null; then',
          'if [ -n "$candidate" ] && command -v "$candidate" >/dev/null; then',
          ("tests/house/test_versions.py::test_any_python_that_runs_and_is_new_enough",)),
    Fault("jobs/venv.sh",
          "sys.version_info[:2] != '$1')",
          "sys.version_info[:2] < '$1')",
          ("tests/house/test_versions.py::test_exactly_the_version_that_is_asked_for",)),
    Fault("jobs/venv.sh",
          '.pyenv}/versions/$1".*',
          '.pyenv}/versions/3.11".*',
          ("tests/house/test_versions.py::test_exactly_the_version_that_is_asked_for",)),
    Fault("jobs/venv.sh",
          'candidates=("${PYTHON:-}" python3 python3.13',
          'candidates=(python3 python3.13',
          ("tests/house/test_versions.py::test_any_python_that_runs_and_is_new_enough",)),
]  # fmt: skip
