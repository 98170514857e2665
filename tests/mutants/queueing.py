"""Faults around the queue: a job of which nobody heard, a notice that hangs, the small job, several runs per verb."""

from tests.mutants import Fault

RULES, SEVERAL = "tests/cluster/test_cluster_rules.py", "tests/cluster/test_several.py"
OPTIONS, LAUNCH = "tests/cluster/test_options.py", "tests/cluster/test_launch_rules.py"
UNHEARD = f"{RULES}::test_an_array_of_which_nobody_heard_is_found_in_the_queue"
ENTERS = f"{RULES}::test_a_job_of_which_nobody_heard_enters_itself"
HANGS = "tests/cluster/test_endings.py::test_what_hangs_is_given_up_with_all_it_started_and_the_jobs_code_stands"
SMALL = f"{OPTIONS}::test_the_small_job_goes_when_nothing_waits_for_it"
TURN = f"{SEVERAL}::test_each_has_its_turn_and_the_worst_code_is_said"
ARRAY = f"{LAUNCH}::test_resume_of_a_sweep_is_one_array_with_its_throttle"

FAULTS = [
    Fault("jobs/cluster/status.py", 'or (j.workdir, j.array_task) in lost)]', 'or j.workdir == lost[0][0])]', (UNHEARD,)),
    Fault("jobs/cluster/submit.py", '{len(list(submitit.glob(\'array-*\'))) + 1}"', '1"', (UNHEARD,)),
    Fault("jobs/cluster/submit.py", '"task": task})', '"task": 0})', (UNHEARD,)),
    Fault("jobs/cluster/submit.py", 'if str(run) in DelayedSubmission', 'if True or str(run) in DelayedSubmission', (ENTERS,)),
    Fault("jobs/cluster/submit.py", '            if not known():\n', '            if known():\n', (ENTERS,)),
    Fault("jobs/cluster/notify.py", '        os.killpg(process.pid, signal.SIGKILL)', '        process.kill()', (HANGS,)),
    Fault("jobs/cluster/sbatch.py", 'r"^\\s*(\\d+)\\s*$", text))', 'r"^\\s*(\\d+)\\s*$", text, re.MULTILINE))',
          (f"{OPTIONS}::test_the_id_among_a_sites_own_words",)),
    Fault("jobs/cluster/submit.py", 'and all(job.id in ended for job in wait) else []', 'else []', (SMALL,)),
    Fault("jobs/cluster/steer.py", 'ended + submit.widener(run, jobs or {}, ended)', 'ended',
          (f"{SEVERAL}::test_stop_takes_along_the_small_job_that_would_widen",)),
    Fault("jobs/cluster/steer.py", 'code = TRANSIENT if isinstance(error, slurm.NoAnswer) else BAD', 'code = BAD', (TURN,)),
    Fault("jobs/cluster/steer.py", '            code = leaving.code if', '            raise\n            code = leaving.code if', (TURN,)),
    Fault("jobs/cluster/clean.py", 'return each([one.run for one in spare], delete)', 'return max(delete(one.run) for one in spare)',
          (f"{SEVERAL}::test_one_that_cannot_be_cleaned_does_not_keep_the_others",)),
    Fault("jobs/cluster/remote.py", '            worst = max(worst, USAGE)\n            continue', '            return USAGE',
          ("tests/cluster/test_remote.py::test_pull_writes_over_no_run_of_this_machine",)),
    Fault("jobs/cluster/status.py", '"STOPPED": RunState.SUSPENDED', '"STOPPED": RunState.RUNNING',
          ("tests/cluster/test_watching.py::test_what_to_do_about_a_job_that_does_not_move",)),
    Fault("jobs/cluster/serve.py", 'return TRANSIENT if taken else min(code, BAD)', 'return code',
          (f"{LAUNCH}::test_serve_hides_notices_and_ends_its_process",)),
    Fault("jobs/cluster/remote.py", 'if code != TRANSIENT:', 'if code == DONE:',
          ("tests/cluster/test_remote.py::test_only_a_port_that_is_taken_there_is_tried_again",)),
    Fault("jobs/cluster/usage.py", '            _silence.add(str(error))', '            pass',
          ("tests/cluster/test_endings.py::test_accounts_that_do_not_answer_are_asked_once",)),
    Fault("jobs/cluster/why.py", 'None if isinstance(queue, status.Silent) else slurm_record(run)', 'slurm_record(run)',
          ("tests/cluster/test_watching.py::test_the_evidence_is_of_the_last_attempt",)),
    Fault("jobs/cluster/quota.py", '(?!\\d+\\*?\\s)', '', (f"{SEVERAL}::test_a_quota_is_read",)),
    Fault("jobs/cluster/sweep.py", 'if any(one != asked[0] for one in asked):', 'if False:', (ARRAY,)),
    Fault("jobs/cluster/options.py", 'group="what", resume=True, kept=True, least=1', 'group="what", resume=True, least=1', (ARRAY,)),
    Fault("jobs/cluster/sweep.py", 'if RunDir(run).stop_requested()]:', 'if False]:',
          (f"{LAUNCH}::test_points_that_still_stop_are_named_and_not_called_live",)),
    Fault("jobs/cluster/slurm_text.py", '[AabJjNnstux])"', '[AabJjNnstx])"', (f"{OPTIONS}::test_a_path_in_which_slurm_writes_something_else",)),
    Fault(
        "jobs/quickstart.sh",
        "    where=\n    echo",
        "    echo",
        ("tests/cluster/test_job_scripts.py::test_quickstart_queues_on_a_login_node_and_computes_elsewhere",),
    ),
    Fault(
        "jobs/cluster/sweep.py",
        "return show.wait_for_points([plan.run for plan in plans], folder) if options.wait and code == DONE else code",
        "return code",
        ("tests/cluster/test_launch_slurm.py::test_sweep_is_one_array_with_a_run_per_point",),
    ),
    Fault("jobs/cluster/show.py", "looks[run] + 1 if view.state in FINAL else 0", "looks[run] + 1",
          ("tests/cluster/test_launch_rules.py::test_a_resumed_sweep_is_waited_for",)),
    Fault("jobs/cluster/sweep.py", "    if asked[0].local:", "    if options.wait or asked[0].local:",
          ("tests/cluster/test_launch_rules.py::test_a_resumed_sweep_is_waited_for",)),
]  # fmt: skip
