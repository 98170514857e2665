"""What launch.py does with several runs at once: verbs on a list or a sweep, --watch, tables that fit, and clean."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest
from test_launch_rules import GAN, World, ran, world  # noqa: F401  (a fixture)

from jobs.cluster import clean, quota, show, slurm, status, steer, submit, why
from jobs.cluster.status import View
from jobs.run import find
from jobs.run.rundir import RunDir


@pytest.fixture
def three(world: World) -> World:  # noqa: F811
    for name in ("one", "two", "three"):
        ran(*GAN, "--name", name)
    world.asked.clear()
    return world


# --- several runs per verb --------------------------------------------------------------------------------------------
def test_stop_takes_several_and_a_sweep_for_its_points(three, capsys):
    ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2")
    assert ran("stop", "one", "grid", "one") == 0
    stopped = {path.parent.name for path in three.runs.glob("*/STOP")}
    assert stopped == {"one", "grid-lr=0.1", "grid-lr=0.2"}


def test_one_that_cannot_be_stopped_does_not_keep_the_others(three, monkeypatch, capsys):
    from jobs.run.states import RunDirError

    real = status.view_run

    def view(run, jobs):
        if run.name == "one":
            raise RunDirError(f"{run}: belongs to somebody else")
        return real(run, jobs)

    monkeypatch.setattr(status, "view_run", view)
    assert ran("stop", "one", "two") == 78
    assert (three.runs / "two/STOP").exists() and "one: " in capsys.readouterr().err


def test_each_has_its_turn_and_the_worst_code_is_said(three, tmp_path, capsys):
    runs = {tmp_path / name: error for name, error in (
        ("a", slurm.NoAnswer("silence")), ("b", OSError(28, "No space left on device")), ("c", SystemExit(2)), ("d", 0),
        ("e", slurm.NoAnswer("no answer")))}  # fmt: skip
    seen = []

    def work(run):
        seen.append(run.name)
        if runs[run]:
            raise runs[run]
        return 0

    assert steer.each(runs, work) == 78 and seen == list("abcde")
    err = capsys.readouterr().err
    assert [line[7] for line in err.splitlines()] == list("abce") and "No space left" in err and "Errno" not in err
    assert steer.each([tmp_path / name for name in "acd"], work) == 75
    for name in "abc":
        with pytest.raises((slurm.NoAnswer, OSError, SystemExit)):
            steer.each([tmp_path / name], work)


def test_wrong_flags_for_one_do_not_keep_the_others(three, capsys):
    ran("--job", "vae", "--data", "phantom:48", "--name", "vae")
    for name in ("vae", "two"):
        three.over(name, "stopped")
    three.plans.clear()
    assert ran("resume", "vae", "two", "--", "--gamma", "3", "--override") == 2
    assert [plan.run.name for plan in three.plans] == ["two"] and "error: vae: nothing done" in capsys.readouterr().err


def test_one_that_cannot_be_cleaned_does_not_keep_the_others(three, monkeypatch, capsys):
    for name in ("one", "two"):
        three.over(name, "done", 1.0)
        fill(three.run(name))
    lock = submit.submit_lock

    def busy(run):
        if run.name == "one":
            raise submit.SubmitError("another launch.py")
        return lock(run)

    monkeypatch.setattr(submit, "submit_lock", busy)
    assert ran("clean", "--yes") == 78
    assert (three.run("one").path / "code").exists() and not (three.run("two").path / "code").exists()
    assert "one: another launch.py" in capsys.readouterr().err


def test_stop_takes_along_the_small_job_that_would_widen(three):
    about = submit.read_jobs(three.runs / "one")
    submit.write_about(three.runs / "one", about | {"widener": "50"})
    three.queue["50"] = slurm.Job("50", "PENDING", name="one-widen")
    assert ran("stop", "two") == 0 and ran("stop", "one") == 0
    assert [call[1] for call in three.asked] == ["43", "42", "50"]


@pytest.mark.parametrize(
    "words", [("one", "two", "--time", "30"), ("--time", "30", "one", "two"), ("one", "--time", "30", "two")]
)
def test_resume_takes_several_wherever_they_stand(three, words):
    for name in ("one", "two", "three"):
        three.over(name, "stopped")
    three.plans.clear()
    assert ran("resume", *words, "--lr", "0.1", "--", "--override") == 0
    assert [(p.run.name, p.minutes, p.config.lr) for p in three.plans] == [("one", 30, 0.1), ("two", 30, 0.1)]


def test_resume_failed_takes_what_ended_badly(three, monkeypatch, capsys):
    for name, state in (("one", "failed"), ("two", "stopped"), ("three", "diverged")):
        three.over(name, state)
    three.plans.clear()
    assert ran("resume", "--failed") == 0 and [p.run.name for p in three.plans] == ["one"]
    three.over("one", "done", 1.0)
    assert ran("resume", "--failed") == 0 and "No run has failed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        ran("resume")
    three.says("two", "running")
    monkeypatch.setattr(status, "all_jobs", status.Silent)
    with pytest.raises(slurm.NoAnswer, match="is not known"):
        ran("resume", "--failed")


def test_a_run_that_is_being_stopped_does_not_count_as_one_that_goes_on(three):
    three.lives("one")
    assert ran("stop", "one") == 0
    for words in (("resume", "one"), (*GAN, "--name", "one")):
        with pytest.raises(slurm.NoAnswer, match="was told to stop; try again when it has stopped"):
            ran(*words)
    three.lives("one", "PENDING", "queued")
    with pytest.raises(slurm.NoAnswer, match="stop one takes it out"):
        ran("resume", "one")
    three.over("one", "stopped")
    assert ran("resume", "one") == 0 and not three.run("one").stop_requested()


def test_why_and_logs_of_a_sweep_are_those_of_its_points(world, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(why, "slurm_record", lambda run: None)
    ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2")
    for name, text in (("grid-lr=0.1", "CUDA out of memory\n"), ("grid-lr=0.2", "Disk quota exceeded\n")):
        world.over(name, "failed")
        for log in world.run(name).logs.glob("*.out"):
            log.unlink()
        (world.run(name).logs / "1.out").write_text(text)
    capsys.readouterr()
    assert ran("why", "grid", "--json") == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["run"], one["line"]) for one in said] == [
        ("grid-lr=0.1", "CUDA out of memory"), ("grid-lr=0.2", "Disk quota exceeded")]  # fmt: skip
    assert ran("why", "grid") == 0
    out = capsys.readouterr().out
    assert "grid-lr=0.1: failed" in out and "grid-lr=0.2: failed" in out
    assert ran("logs", "grid") == 0
    out, err = capsys.readouterr()
    assert out == "CUDA out of memory\nDisk quota exceeded\n" and err.count("==> ") == 2 and "grid-lr=0.2" in err


# --- status -----------------------------------------------------------------------------------------------------------
def test_status_is_shown_again_until_ctrl_c(three, monkeypatch, capsys):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(show.time, "sleep", sleep)
    capsys.readouterr()
    assert ran("status", "--watch", "7") == 0 and looks == [7, 7, 7]
    out = capsys.readouterr().out
    assert out.count("RUN ") == 3 and "\x1b" not in out  # no terminal
    assert ran("status", "one", "two", "--watch", "--json") == 0
    with pytest.raises(SystemExit):
        ran("status", "--watch", "0")


def test_status_of_some(three, capsys):
    capsys.readouterr()
    ran("status", "one", "two", "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["version"] == 1 and [view["name"] for view in said["runs"]] == ["one", "two"]


VIEWS = [
    View("stylegan2-1a2b3c4d", "/x", state="running", job_id="12345", node="a100-3", elapsed_s=3723, limit_s=14400,
         kimg=1234, total_kimg=25000, eta_s=12000, restarts=2, gpu_util=97, gpu_gb=30),
    View("vae", "/x", state="queued", job_id="12346", partition="a100", note="waits behind jobs of higher priority"),
    View("diffusion-99", "/x", state="interrupted", kimg=3, total_kimg=10, restarts=1,
         note="saved (USR2) and not continued; python launch.py resume diffusion-99"),
]  # fmt: skip


@pytest.mark.parametrize("columns", [60, 80, 100, 124, 160, 200])
def test_status_fits_the_terminal_and_uses_what_is_there(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    show.show_runs(VIEWS)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    for word in ("stylegan2-1a2b3c4d", "running", "1234/25000 kimg", "higher priority", "diffusion-99"):
        assert word in out
    header = out.splitlines()[0].split()
    left_out = {"JOB", "ON", "TIME", "LEFT", "RESTARTS", "GPU"} - set(header)
    assert all(name in out.partition("not shown")[2] for name in left_out)
    assert {"TIME", "LEFT"} <= set(header) or columns < 80
    assert not left_out or columns < 160


def test_hints_can_be_pasted(tmp_path, monkeypatch, capsys):
    """A path with a blank is one word of the shell."""
    run = RunDir(tmp_path / "my runs" / "it's")
    run.create()
    assert shlex.split(find.typed(run.path)) == [str(run.path)]
    show.next_steps(run.path, "failed")
    for line in capsys.readouterr().out.splitlines()[1:3]:
        assert str(run.path) in shlex.split(line)
    monkeypatch.setattr(find, "RUNS", run.path.parent)
    assert find.typed(run.path) == shlex.quote("it's")


@pytest.mark.parametrize(("text", "found"), [
    (" nfs:/home 15000000* 14000000 16000000 0 7 0 0 0", (15.36, 16.384)),
        ("/lustre 1000000 0 2000000 - 1 0 0 -", (1.024, 2.048)),
    ("none", None), ("/home 5 0 0", None), ("15000000* 14000000 16000000 0 7 0", None), ("/home \u00b2 5 5", None),
    ("/home 5K 5K 6K", None), ("/home 1 - -", None),
])  # fmt: skip
def test_a_quota_is_read(text, found):
    assert quota.parse([text]) == (found and pytest.approx(found))


# --- clean ------------------------------------------------------------------------------------------------------------
def fill(run: RunDir) -> None:
    for nimg in (8, 16, 24):
        (run.checkpoints / f"{nimg:012d}.pt").write_bytes(b"x" * 1000)
        (run.checkpoints / f"{nimg:012d}.json").write_text(json.dumps({"size": 1000}))
    (run.path / "code").mkdir(exist_ok=True)
    (run.path / "code/train_gan.py").write_text("code")
    (run.logs / "submitit").mkdir(exist_ok=True)
    for name in (
        "logs/submitit/1_submitted.pkl",
        "logs/1.out",
        "samples/1.png",
        "weights.safetensors",
        "metrics.jsonl",
    ):
        (run.path / name).write_text("kept")


def kept(run: RunDir) -> set[str]:
    return {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file() or p.is_symlink()}


SPARE = {
    *(f"checkpoints/{nimg:012d}{end}" for nimg in (8, 16) for end in (".pt", ".json")),
    "code/train_gan.py", "logs/submitit/1_submitted.pkl",
}  # fmt: skip


def test_clean_takes_from_a_finished_run_what_it_does_not_need(three, capsys):
    for name, state in (("one", "done"), ("two", "stopped")):
        three.over(name, state, 1.0)
        fill(three.run(name))
    fill(three.run("three"))  # queued
    before = {name: kept(three.run(name)) for name in ("one", "two", "three")}
    assert ran("clean", "--yes") == 0
    assert before["one"] - kept(three.run("one")) == SPARE
    assert {name: kept(three.run(name)) for name in ("two", "three")} == {
        name: before[name] for name in ("two", "three")
    }
    out = capsys.readouterr().out
    assert "one: " in out and "deleted" in out and "SPARE" in out
    assert ran("clean", "one", "--yes") == 0 and "Nothing to delete" in capsys.readouterr().out


def test_clean_asks_and_without_a_terminal_refuses(three, monkeypatch, capsys):
    three.over("one", "done", 1.0)
    fill(three.run("one"))
    before = kept(three.run("one"))
    assert ran("clean") == 2 and "give --yes" in capsys.readouterr().err and kept(three.run("one")) == before

    class Terminal:
        def __init__(self, answer):
            self.answer = answer

        def isatty(self):
            return True

        def readline(self):
            return self.answer

    for answer in ("\n", "n\n", "", "yes please\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert ran("clean") == 2 and kept(three.run("one")) == before
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert ran("clean") == 0 and kept(three.run("one")) == before - SPARE


def test_clean_leaves_a_run_of_which_slurm_says_nothing(three, monkeypatch, capsys):
    three.over("one", "done", 1.0)
    fill(three.run("one"))
    before = kept(three.run("one"))
    for silence in (status.Silent(), None):
        monkeypatch.setattr(status, "all_jobs", lambda silence=silence: silence)
        assert ran("clean", "--yes") == 0 and kept(three.run("one")) == before
        assert "Slurm gives no answer" in capsys.readouterr().out


def test_clean_looks_again_before_it_deletes(three, monkeypatch):
    """Queued anew while the question stood."""
    three.over("one", "done", 1.0)
    fill(three.run("one"))
    before = kept(three.run("one"))
    monkeypatch.setattr(clean, "confirmed", lambda text: three.run("one").unmark_done() is None)
    assert ran("clean") == 0 and kept(three.run("one")) == before - {"DONE"}


def test_clean_follows_no_link_out_of_a_run(three, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    three.over("one", "done", 1.0)
    run = three.run("one")
    fill(run)
    for nimg in (8, 16, 24):
        os.rename(run.checkpoints / f"{nimg:012d}.pt", elsewhere / f"{nimg:012d}.pt")
        os.rename(run.checkpoints / f"{nimg:012d}.json", elsewhere / f"{nimg:012d}.json")
    run.checkpoints.rmdir()
    run.checkpoints.symlink_to(elsewhere)
    (run.path / "code" / "link").symlink_to(elsewhere)
    (run.path / ".code.old").symlink_to(elsewhere)
    assert ran("clean", "--yes") == 0
    assert len(list(elsewhere.iterdir())) == 6 and not os.path.lexists(run.path / ".code.old")
    assert "link that leads out" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["short", "no sidecar", "no file"])
def test_clean_keeps_all_checkpoints_where_the_newest_is_not_whole(three, damage, capsys):
    three.over("one", "done", 1.0)
    run = three.run("one")
    fill(run)
    newest = run.checkpoints / f"{24:012d}.pt"
    if damage == "short":
        newest.write_bytes(b"x")
    elif damage == "no file":
        newest.unlink()
    else:
        newest.with_suffix(".json").write_text("{")
    ran("clean", "--yes")
    assert len(list(run.checkpoints.glob("*.json"))) == 3 and "not whole" in capsys.readouterr().out


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (999, "1 kB"), (2_500_000, "2.5 MB"), (3_400_000_000, "3.4 GB")])
def test_sizes_for_people(count, text):
    assert clean.size(count) == text


def test_bytes_on_the_disk(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"x" * 100_000)
    (tmp_path / "link").symlink_to("/usr")
    assert 100_000 <= clean.bytes_of(tmp_path) < 200_000 and clean.bytes_of(Path("/no/such")) == 0
