"""Which test holds which trap: those of submitit and those of the cluster, each of which has cost somebody a day.

Every row says how the trap is made impossible or caught, and names the tests that would fail if it came back.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_launch import make, no_own_profiles  # noqa: F401
from tiny import ROOT

from jobs.cluster import submit
from jobs.run.find import read_jobs

TESTS = Path(__file__).parent
SCRIPTS = sorted(path for path in ROOT.glob("jobs/*.sh") if "#SBATCH" in path.read_text())

# number, the trap, what is done about it, the tests (file without test_, then the function)
SUBMITIT = [
    (1, "a job shorter than the warning's margin is signalled at once, maybe before Python listens",
     "a time below margin plus start is refused; a task that a signal killed is continued; handlers come before torch",
     "launch:requests_that_slurm_cannot_meet requeue:crashes_cost_a_restart attempts:stopping_while_packing"),
    (2, "submitit's own countdown takes pre-emptions and short jobs for time-outs", "own budget, in which pre-emptions cost nothing",
     "requeue:pre_emptions_neither_make_a_run_stuck_nor_cost_anything slurm_stops:pre_emption_with_the_users_signal"),
    (3, "the requeueing child of rank 0 is killed by Slurm's TERM; the result file says error", "the batch shell requeues, deaf to signals; no result file",
     "slurm_stops:pre_emption_without_the_users_signal requeue:requeue_is_written_down_before_slurm_kills_this_process"),
    (4, "where requeueing is forbidden an exception comes up in the middle of training", "a chain of jobs",
     "slurm_training:where_requeueing_is_forbidden_a_chain_finishes_the_run requeue:where_requeueing_is_refused_at_the_end_a_successor_is_queued"),
    (5, "a half-written pickle stops every later requeue", "nothing is saved through submitit: state lives in the run directory",
     "launch_slurm:queued_run_goes_through_two_stops_to_the_weights_of_an_undisturbed_one"),
    (6, "plain scancel is ignored until SIGKILL, and nothing is saved", "exec drops submitit's handlers; TERM saves",
     "launch_slurm:scancel_saves_and_the_same_command_goes_on slurm_stops:scancel_saves_and_ends_the_run"),
    (7, "without srun no signal reaches Python", "always srun", "launch:dry_run_without_slurm traps:the_scripts_avoid_the_clusters_traps"),
    (8, "without accounting the state is UNKNOWN for ever", "squeue, scontrol, sacct and the run's own heartbeat",
     "launch:view_merges_slurm_and_the_heartbeat launch_slurm:queued_run_goes_through_two_stops_to_the_weights_of_an_undisturbed_one"),
    (9, "memory options exclude each other and fail where nodes report none", "none is ever sent",
     "launch:dry_run_without_slurm launch:requests_that_slurm_can_meet requeue:the_scripts_are_what_slurm_and_unix_take"),
    (10, "submitting from inside a job leaks its SLURM variables", "they are taken out of the environment",
     "launch_slurm:submitting_from_inside_a_job_leaks_nothing"),
    (11, "CPU binding outside of the allocation", "--cpu-bind=none", "launch:dry_run_without_slurm traps:the_scripts_avoid_the_clusters_traps"),
    (12, "the pickle holds code, and an edit while the job waits changes the run", "it holds os.execv and a command; the job runs a snapshot",
     "launch:pickle_is_private_and_holds_only_the_command launch:local_run_from_start_to_end"),
    (13, "state inside the pickle: after a node failure an old checkpoint is resumed for ever", "the newest checkpoint of the run directory is",
     "slurm_stops:a_crashed_node_is_continued_by_slurm"),
    (14, "the log folder is made just before sbatch, and the pickle after it", "run directory and log folder stand long before, and are checked",
     "traps:everything_a_job_needs_stands_before_it_is_queued launch:node_local_run_folder"),
    (15, "torchrun inside of Slurm loses signals and orphans its workers", "one task per GPU, ranks from Slurm's variables",
     "launch_slurm:two_nodes_stop_together_and_go_on attempts:no_rank_leaves_before_rank_0_has_written traps:torchrun_is_for_this_machine_alone"),
    (16, "every task sees all GPUs, and submitit renumbers them", "each task takes the device of its local rank from what Slurm shows it",
     "runtime:local_world_of_a_slurm_step runtime:two_ranks_from_slurm_variables"),
    (17, "scontrol is missing on the node", "said at once, and a successor is tried",
     "requeue:without_slurms_commands_on_the_node_nothing_is_waited_for slurm:commands_that_are_missing_fail_or_hang"),
    (18, "--gpus, --gres and --gpus-per-node differ from site to site", "the site's profile decides", "launch:rangpur_profile launch:wrong_gres_type_names_what_there_is"),
    (19, "wckey=submitit is always sent", "it is not", "launch:dry_run_without_slurm"),
    (20, "a graceful stop is noted as a result, so that the job counts as done", "exec: there is no result file",
     "launch_slurm:queued_run_goes_through_two_stops_to_the_weights_of_an_undisturbed_one"),
    (21, "dependencies only as raw text", "--after and pipelines, which look whether the first run is done",
     "launch_slurm:a_run_after_another_starts_only_when_that_is_done launch_slurm:a_pipeline_never_trains_on_an_unfinished_vae"),
    (22, "a command is not requeued at its time limit", "jobs/cluster/requeue.py does it for every job",
     "launch_slurm:queued_run_goes_through_two_stops_to_the_weights_of_an_undisturbed_one launch_slurm:real_time_limits"),
]  # fmt: skip
CLUSTER = [
    (1, "without --account a job pends for ever, which --test-only does not notice", "the profile sends it; else a check and `why` name it",
     "launch:rangpur_profile launch:requests_that_slurm_cannot_meet launch_slurm:pending_reasons_of_a_real_queue"),
    (2, "--mem is refused or pends for ever", "never sent", "launch:dry_run_without_slurm requeue:the_scripts_are_what_slurm_and_unix_take"),
    (3, "Slurm does not make the folder of --output", "it stands before; the sbatch scripts log into the folder they are submitted from",
     "traps:everything_a_job_needs_stands_before_it_is_queued traps:the_scripts_avoid_the_clusters_traps"),
    (4, "batch shells are clean: no conda, no venv", "the interpreter of launch.py, or .venv, by its path", "traps:a_clean_batch_shell_finds_the_venv"),
    (5, "module load cuda clashes with the wheels", "no module is loaded", "traps:the_scripts_avoid_the_clusters_traps"),
    (6, "scripts with CRLF are rejected", "refused with the fix", "launch:crlf_script_is_refused slurm:test_only_on_a_real_cluster"),
    (7, "sbatch without options is one CPU for ten minutes", "the scripts ask for all they need", "traps:the_scripts_avoid_the_clusters_traps"),
    (8, "log names without %j overwrite each other; buffered output looks hung", "%j and -u", "traps:the_scripts_avoid_the_clusters_traps launch:dry_run_without_slurm"),
    (9, "matplotlib wants a display", "MPLBACKEND=Agg", "traps:the_scripts_avoid_the_clusters_traps"),
    (10, "a time-out counts as failure for afterok", "afterany, and DONE is looked at", "launch_slurm:a_pipeline_never_trains_on_an_unfinished_vae"),
    (11, "a compiled step replaced the signal handler", "it is looked at in each step and put back", "stop:handlers_that_a_library_replaced_are_put_back"),
    (12, "one CPU per task starves the loader", "four, by profile and scripts", "launch:requests_that_slurm_can_meet traps:the_scripts_avoid_the_clusters_traps"),
]  # fmt: skip


@functools.cache
def functions_in(name: str) -> set[str]:
    path = TESTS / f"test_{name}.py"
    if not path.exists():
        return set()
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("table", "rows"), [(SUBMITIT, 22), (CLUSTER, 12)], ids=["submitit", "cluster"])
def test_every_trap_is_held_by_tests_that_exist(table, rows):
    assert [number for number, *_ in table] == list(range(1, rows + 1))
    missing = []
    for number, trap, guard, names in table:
        assert trap and guard and names
        for name in names.split():
            file, _, function = name.partition(":")
            known = functions_in(file)
            if not {f"test_{function}", function} & known:
                missing.append(f"{number}: {name}")
    assert not missing


def test_the_scripts_avoid_the_clusters_traps():
    assert [path.stem for path in SCRIPTS] == ["diffusion", "predict", "stylegan2", "vae"]
    for path in SCRIPTS:
        header = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", path.read_text(), re.M))
        assert {"partition", "gres", "nodes", "time"} <= set(header) and header["cpus-per-task"] == "4", path
        assert "%j" in header["output"] and "/" not in header["output"], path
        if path.stem != "predict":
            assert {
                "requeue": "",
                "open-mode": "append",
                "signal": "USR2@180",
                "ntasks-per-node": "1",
            }.items() <= header.items()
    shell = (ROOT / "jobs" / "env.sh").read_text()
    assert re.search(r"^ *srun --kill-on-bad-exit=1 .*--cpu-bind=none --unbuffered", shell, re.M)
    assert "MPLBACKEND=Agg" in shell and "PYTHONUNBUFFERED=1" in shell and "exec srun" not in shell
    assert not any("module load" in path.read_text() for path in ROOT.glob("jobs/*.sh"))


def test_a_clean_batch_shell_finds_the_venv(tmp_path):
    """Nothing activated, nothing on the PATH but the system: the interpreter of .venv is used."""
    for name in ("env.sh", "venv.sh"):
        (tmp_path / "jobs").mkdir(exist_ok=True)
        (tmp_path / "jobs" / name).write_bytes((ROOT / "jobs" / name).read_bytes())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", "-c", 'source jobs/env.sh && echo "$PYTHON $MPLBACKEND"'], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7"},
    )  # fmt: skip
    assert done.stdout.split() == [str(python), "Agg"], done.stderr


def test_everything_a_job_needs_stands_before_it_is_queued(tmp_path, monkeypatch):
    """Slurm may start the job at once, on a node that sees new folders late: at sbatch all of them stand, and are private."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "srun").write_text("#!/bin/sh\n")
    (bin_ / "sbatch").write_text(
        f"#!{sys.executable}\nimport json, os, sys\nrun = {str(tmp_path / 'run')!r}\n"
        "seen = [name for name in ('logs', 'logs/submitit', 'code/train_gan.py', 'jobs.json', 'job.sbatch') if os.path.exists(run + '/' + name)]\n"
        f"json.dump([seen, sorted(k for k in os.environ if k.startswith('SLURM_'))], open({str(tmp_path / 'seen')!r}, 'w'))\n"
        "print('Submitted batch job 7')\n"
    )
    for path in bin_.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    plan = make(tmp_path)
    submit.prepare(plan)
    assert submit.submit_slurm([plan]) == ["7"]
    seen, leaked = json.loads((tmp_path / "seen").read_text())
    assert seen == ["logs", "logs/submitit", "code/train_gan.py", "jobs.json", "job.sbatch"]
    assert set(leaked) <= {"SLURM_CONF"}
    (pickle,) = (plan.run / "logs" / "submitit").glob("*.pkl")
    assert pickle.name == "7_submitted.pkl" and stat.S_IMODE(pickle.stat().st_mode) == 0o600
    assert read_jobs(plan.run)["submitted"][0]["id"] == "7"


def test_torchrun_is_for_this_machine_alone(tmp_path):
    many = make(tmp_path, "--batch", "128", "--pl-weight", "0", gpus=4, nodes=2)
    assert many.tasks == 4 and "torch.distributed.run" not in many.command()
    assert "--ntasks-per-node=4" in submit.sbatch_text([many]) and "--nodes=2" in submit.sbatch_text([many])
    command = make(tmp_path, "--batch", "128", local=True, gpus=4).command()
    from torch.distributed.run import parse_args

    parsed = parse_args(command[command.index("torch.distributed.run") + 1 :])  # ours is not taken for its --run-path
    assert parsed.training_script.endswith("train_gan.py") and parsed.training_script_args[0] == "--run"
