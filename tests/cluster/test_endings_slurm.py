"""On a real Slurm: nobody hears of a requeue, the GPU hours of all attempts add up, and their budget ends a run."""

from __future__ import annotations

import json
import sys

import pytest
from private_cluster import held
from test_launch_slurm import GAN, clone, ids, launch, log, queue, view  # noqa: F401  (fixtures)
from tiny import wait_until

from jobs.run.rundir import RunDir

pytestmark = pytest.mark.timeout(1800)


def test_a_budget_ends_a_run_with_a_save_and_that_alone_is_told(queue, clone):  # noqa: F811
    heard = clone / "heard"
    (clone / "brain-slices").mkdir()
    own, hear = clone / "brain-slices/sites.toml", clone / "hear.py"
    hear.write_text(f"import os, sys; open({str(heard)!r}, 'a').write(os.environ['STATE'] + ' ' + sys.stdin.read())\n")
    own.write_text(f"[notify]\nme = [{sys.executable!r}, {str(hear)!r}]\n")
    own.chmod(0o600)
    words = (*GAN, "--total-kimg", "900", "--name", "dear", "--gpus", "2", "--max-gpu-hours", "0.03", "--notify", "me")
    launch(queue, clone, *words)
    run = RunDir(clone / "runs" / "dear")
    (job,) = ids(run.path)
    wait_until(lambda: run.newest_checkpoint() > 0)
    with held(run.path):
        queue.run("scancel", "--signal=USR2", job)  # what Slurm sends before the time limit
    wait_until(lambda: sum(x["event"] == "decision" for x in run.read_attempts()) == 1)
    assert not heard.exists(), heard.read_text()
    wait_until(lambda: sum(x["event"] == "decision" for x in run.read_attempts()) == 2)
    queue.wait_over(job)
    last = [x for x in run.read_attempts() if x["event"] == "decision"][-1]
    assert last["decision"] == "budget" and "GPU hours" in last["why"], log(run.path)
    ends = [x for x in run.read_attempts() if x["event"] == "end"]
    assert ends[-1]["reason"] == "GPU hours" and run.newest_checkpoint() == ends[-1]["nimg"] > 0
    assert heard.read_text().count("dear is failed") == 1 and "GPU hours" in heard.read_text()
    starts = [x for x in run.read_attempts() if x["event"] == "start"]
    assert [x["gpus"] for x in starts] == [2, 2]
    (used,) = json.loads(launch(queue, clone, "usage", "dear", "--json").stdout)["runs"]
    assert (
        0.03 <= used["used"] < 0.05
        and used["attempts"] == 2
        and used["asked"] > 1
        and used["queued"] >= 0
        and used["budget"] == 0.03
    )
    assert view(queue, clone, "dear")["state"] == "failed"
    refused = launch(queue, clone, "resume", "dear", code=78)
    assert "GPU hours are used up" in refused.stderr and ids(run.path) == [job]
    # Neither the batch script nor the queue knows how the user is told.
    assert "hear.py" not in (run.path / "job.sbatch").read_text()
