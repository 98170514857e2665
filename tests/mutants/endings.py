"""Notice at the end, GPU hours, clean, several runs per verb, the login node."""

from tests.mutants import Fault

ENDINGS, SEVERAL, REMOTE = (f"tests/cluster/test_{name}.py::" for name in ("endings", "several", "remote"))

FAULTS = [
    Fault(
        "jobs/cluster/notify.py",
        "if verdict.goes_on or (",
        "if (",
        (ENDINGS + "test_a_command_hears_of_every_end_and_of_no_requeue",),
    ),
    Fault(
        "jobs/cluster/notify.py",
        "if file.stat().st_mode & 0o077:",
        "if file.stat().st_mode & 0o007 == 7:",
        (ENDINGS + "test_a_file_that_others_can_read_is_no_place_for_a_webhook",),
    ),
    Fault(
        "jobs/cluster/notify.py",
        "type(reason or error).__name__",
        "str(error)",
        (ENDINGS + "test_what_goes_wrong_is_one_line_without_the_secret",),
    ),
    Fault(
        "jobs/cluster/notify.py",
        '            return line.get("state") == state\n',
        "            return False\n",
        (ENDINGS + "test_the_same_end_is_told_once",),
    ),
    Fault(
        "jobs/run/budget.py",
        "used_s * min(max(reached - kept, 0.0)",
        "used_s * min(max(kept - reached, 0.0)",
        (ENDINGS + "test_work_after_the_last_checkpoint_is_lost",),
    ),
    Fault("jobs/run/budget.py", "* 3600 / gpus", "* 3600", (ENDINGS + "test_the_moment_at_which_a_budget_is_used_up",)),
    Fault(
        "jobs/cluster/decide.py",
        "most is None or used < most:",
        "most is None or used <= most:",
        (ENDINGS + "test_a_run_without_gpu_hours_left_does_not_go_on",),
    ),
    Fault(
        "jobs/cluster/usage.py",
        "max(times.get(one.job_id, 0.0), free)",
        "times.get(one.job_id, 0.0)",
        (ENDINGS + "test_the_wait_in_the_queue",),
    ),
    Fault(
        "jobs/cluster/clean.py",
        "if state != RunState.DONE or not RunDir(run).done():",
        "if state != RunState.DONE:",
        (SEVERAL + "test_clean_looks_again_before_it_deletes",),
    ),
    Fault(
        "jobs/cluster/clean.py",
        "if others and not whole:",
        "if not others:",
        (SEVERAL + "test_clean_keeps_all_checkpoints_where_the_newest_is_not_whole",),
    ),
    Fault(
        "jobs/cluster/clean.py",
        "jobs is None or isinstance(jobs, status.Silent)",
        "jobs is None",
        (SEVERAL + "test_clean_leaves_a_run_of_which_slurm_says_nothing",),
    ),
    Fault(
        "jobs/run/find.py",
        "return shlex.quote(run.name if",
        "return str(run.name if",
        (SEVERAL + "test_hints_can_be_pasted",),
    ),
    Fault(
        "jobs/run/find.py",
        "[run] if points is None else",
        "[run] if points is not None else",
        (SEVERAL + "test_why_and_logs_of_a_sweep_are_those_of_its_points",),
    ),
    Fault(
        "jobs/cluster/terminal.py",
        "keep = [i for i in keep if header[i] != name or i in (0, last)]",
        "keep = list(keep)",
        (SEVERAL + "test_status_fits_the_terminal_and_uses_what_is_there",),
    ),
    Fault(
        "jobs/cluster/remote.py",
        'not value or value.startswith("-")',
        "not value",
        (REMOTE + "test_which_words_name_the_host",),
    ),
    Fault(
        "jobs/cluster/remote.py",
        "Path(name).name != name",
        "not name",
        (REMOTE + "test_a_run_whose_name_leads_elsewhere_is_refused",),
    ),
    Fault(
        "jobs/run/find.py",
        'root = Path(read_json(root / "snapshot.json")["from"])',
        'root = Path(read_json(root / "snapshot.json")["source"])',
        ("tests/run/test_rundir.py::test_a_snapshot_knows_where_its_runs_lie",),
    ),
]
