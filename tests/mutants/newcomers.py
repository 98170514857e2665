"""What a newcomer meets: help, flags of elsewhere, configurations in files, a busy machine, another system."""

from tests.mutants import Fault

FAULTS = [
    Fault(
        "data/installed.py",
        "if importlib.util.find_spec(name) is None]",
        "if importlib.util.find_spec(name) is False]",
        ("tests/config/test_help.py::test_a_venv_that_is_not_activated",),
    ),
    Fault(
        "jobs/config/help.py",
        "if name in ELSEWHERE:",
        "if flag in ELSEWHERE:",
        ("tests/config/test_help.py::test_what_is_called_otherwise_elsewhere",),
    ),
    Fault(
        "jobs/config/help.py",
        'flag.replace("_", "-") not in known',
        "flag not in known",
        ("tests/config/test_help.py::test_what_is_called_otherwise_elsewhere",),
    ),
    Fault(
        "jobs/config/help.py",
        'found[name] = (found.get(name, (group, ""))[0], " ".join(words.split()))',
        'found.setdefault(name, (group, " ".join(words.split())))',
        ("tests/config/test_help.py::test_help_names_what_the_kind_itself_says",),
    ),
    Fault(
        "jobs/config/kinds.py",
        'value = run if place == "run" else shlex.quote(',
        'value = run if place == "run" else str(',
        ("tests/config/test_help.py::test_what_one_does_next",),
    ),
    Fault(
        "jobs/config/recorded.py",
        "if name not in NOT_TAKEN}\n",
        "if name not in NOT_TAKEN[1:]}\n",
        ("tests/config/test_recorded.py::test_a_file_is_the_run_of_the_same_flags",),
    ),
    Fault(
        "jobs/config/recorded.py",
        'value != "" or defaults[name] != ""}',
        'value != ""}',
        ("tests/config/test_recorded.py::test_a_file_is_the_run_of_the_same_flags",),
    ),
    Fault(
        "jobs/config/recorded.py",
        "'\"auto\"' if name in follows else",
        "'\"auto\"' if not name else",
        ("tests/config/test_recorded.py::test_what_follows_still_follows",),
    ),
    Fault(
        "jobs/training/devices.py",
        "times[best] * CLEARLY < times[most]",
        "times[best] < times[most]",
        ("tests/training/test_threads.py::test_fewer_threads_only_where_they_are_clearly_faster",),
    ),
    Fault(
        "jobs/training/devices.py",
        "max(min(starts[-1], usable), 1)",
        "usable",
        ("tests/training/test_threads.py::test_a_run_keeps_its_number_of_threads",),
    ),
    Fault(
        "jobs/training/devices.py",
        "if starts and run.newest_checkpoint() > 0:",
        "if starts:",
        ("tests/training/test_threads.py::test_a_run_keeps_its_number_of_threads",),
    ),
    Fault(
        "jobs/training/devices.py",
        "if told or not slow or os.getloadavg()[0] <= (os.cpu_count() or 1):",
        "if told or not slow:",
        ("tests/training/test_threads.py::test_steps_that_become_slow_on_a_busy_machine_are_told_once",),
    ),
    Fault(
        "data/files.py",
        "for folder in (place, *place.parents):",
        "for folder in (place,):",
        ("tests/training/test_threads.py::test_the_quota_of_the_cgroups",),
    ),
    Fault(
        "jobs/run/owners.py",
        "except ImportError:  # Windows",
        "except ZeroDivisionError:  # Windows",
        ("tests/predict/test_elsewhere.py::test_pictures_and_reports_need_nothing_of_linux",),
    ),
    Fault(
        "jobs/run/stopping.py",
        'if sys.platform != "linux":',
        'if sys.platform == "linux2":',
        ("tests/predict/test_elsewhere.py::test_training_says_that_it_wants_linux",),
    ),
    Fault(
        "jobs/predict/named.py",
        "if inside := runs_inside(Path(text)):",
        'if inside := "":',
        ("tests/predict/test_elsewhere.py::test_what_is_no_run_and_what_are_no_weights",),
    ),
    Fault(
        "jobs/training/told.py",
        'and not name.endswith("_ema")',
        "",
        ("tests/training/test_threads.py::test_the_size_of_a_run_in_words",),
    ),
    Fault(
        "jobs/container.def",
        'exec python -u "$@"',
        "exec python -u $1",
        ("tests/cluster/test_container.py::test_what_it_runs_is_the_script_of_the_folder",),
    ),
]
