"""train_gan.py as a user meets it: real processes, killed, stopped, resumed, refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import tiny
from inprocess import run_main

import train_gan

LENGTH = ("--total-kimg", "0.4")


@pytest.fixture(scope="module")
def reference(packs, tmp_path_factory) -> Path:
    """The run that nobody disturbed, from a new interpreter."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert tiny.train(run, *LENGTH, packs=packs, anew=True) == 0, tiny.output(run)
    return run


@pytest.fixture(scope="module")
def reference2(packs, tmp_path_factory) -> Path:
    """The undisturbed run on two ranks."""
    run = tmp_path_factory.mktemp("reference2") / "run"
    assert tiny.train(run, *LENGTH, packs=packs, ranks=2) == 0, tiny.output(run)
    return run


def test_finished_run_has_everything(reference):
    for name in [
        "DONE",
        "config.json",
        "provenance.json",
        "attempts.jsonl",
        "status.json",
        "metrics.jsonl",
        "weights.safetensors",
        "plots/losses.png",
        "samples/reals.png",
    ]:
        assert (reference / name).is_file(), name
    assert json.loads((reference / "status.json").read_text())["state"] == "done"
    provenance = json.loads((reference / "provenance.json").read_text())
    assert provenance["packages"]["torch"] and provenance["device"] == "cpu" and provenance["threads"] == 1
    last = tiny.rows(reference, timing=True)[-1]
    assert {"data_wait", "checkpoint_wait", "img_per_s", "sec_per_kimg"} <= set(last)
    assert 0 < last["peak_share"] < 1 and last["tflops"] > 0
    assert len(list((reference / "checkpoints").glob("*.pt"))) in (2, 3)
    assert list((reference / "tensorboard").iterdir())
    row = tiny.rows(reference)[-1]
    assert {"loss_G", "loss_D", "logits_real", "logits_fake", "r1", "path_length", "ada_p", "diversity"} <= set().union(
        *tiny.rows(reference)
    )
    assert row["nimg"] == 400
    assert not (reference / "LOCK").exists()


def test_same_command_on_a_finished_run_says_so_and_changes_nothing(reference, packs):
    before = tiny.weights_hash(reference), (reference / "metrics.jsonl").read_bytes()
    assert tiny.train(reference, *LENGTH, packs=packs) == 0
    assert "is done" in tiny.output(reference)
    assert before == (tiny.weights_hash(reference), (reference / "metrics.jsonl").read_bytes())


def test_killed_three_times_ends_with_the_same_weights(reference, packs, tmp_path):
    tiny.kill_at_random_moments(tmp_path / "run", *LENGTH, packs=packs, kills=3, seed=1)
    tiny.assert_same_run(tmp_path / "run", reference)


@pytest.mark.long
def test_killed_ten_times_ends_with_the_same_weights(reference, packs, tmp_path):
    tiny.kill_at_random_moments(tmp_path / "run", *LENGTH, packs=packs, kills=10, seed=2)
    tiny.assert_same_run(tmp_path / "run", reference)


def test_two_ranks_all_killed_end_with_the_same_weights(reference2, packs, tmp_path):
    tiny.kill_at_random_moments(tmp_path / "run", *LENGTH, packs=packs, kills=2, seed=3, ranks=2)
    tiny.assert_same_run(tmp_path / "run", reference2)


def test_one_of_two_ranks_killed(reference2, packs, tmp_path):
    tiny.kill_at_random_moments(tmp_path / "run", *LENGTH, packs=packs, kills=2, seed=4, ranks=2, one=True)
    tiny.assert_same_run(tmp_path / "run", reference2)


def die_in_writer(run: Path, function: str, suffix: str, before: bool, call: int) -> None:
    """From now on this process dies when the checkpoint writer comes for the `call`th time to, or from, os.replace or
    os.unlink of a file of this kind (that is there)."""
    real, calls = getattr(os, function), []

    def fatal(*args, **kwargs):
        target = os.fspath(args[-1])
        hit = threading.current_thread().name == "checkpoint writer" and target.endswith(suffix)
        if hit and (function == "replace" or os.path.exists(target)):
            calls.append(target)
        dies = hit and len(calls) == call
        if dies and before:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args, **kwargs)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, function, fatal)


def test_killed_inside_a_checkpoint_write(packs, tmp_path):
    """Before and after each name that a write makes or takes away, one kill after the other; forked, not started
    anew."""
    flags = ("--total-kimg", "0.144", "--checkpoint-kimg", "0.016", "--log-kimg", "0.016")
    run, whole, newest = tmp_path / "run", tmp_path / "whole", -1
    outcome = run_main("train_gan.py", "--run", str(whole), *flags, packs=packs)
    assert outcome.code == 0, outcome.said
    for function, suffix, before, call in [
        ("replace", ".pt", True, 2),
        ("replace", ".pt", False, 2),
        ("replace", ".safetensors", False, 1),
        ("replace", ".json", True, 1),
        ("unlink", ".json", True, 1),
        ("unlink", ".json", False, 1),
        ("unlink", ".pt", False, 1),
    ]:
        sys.stdout.flush()
        if not (pid := os.fork()):
            die_in_writer(run, function, suffix, before, call)
            run_main("train_gan.py", "--run", str(run), *flags, packs=packs)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, (function, suffix, before)
        saved = {}
        for marker in (run / "checkpoints").glob("*.json"):  # a marker never stands without its whole file
            saved[int(marker.stem)] = json.loads(marker.read_text())["sha256"]
            assert hashlib.sha256(marker.with_suffix(".pt").read_bytes()).hexdigest() == saved[int(marker.stem)]
        assert saved and max(saved) >= newest  # nor is a newer one given away
        newest = max(saved)
    outcome = run_main("train_gan.py", "--run", str(run), *flags, packs=packs)
    assert outcome.code == 0 and newest > 0, outcome.said
    assert tiny.weights_hash(run) == tiny.weights_hash(whole) and tiny.rows(run) == tiny.rows(whole)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == sorted(
        p.name for p in (whole / "checkpoints").iterdir()
    )


def test_one_and_two_ranks_give_the_same_losses(packs, tmp_path):
    flags = ("--total-kimg", "0.16", "--log-kimg", "0.008", "--lr", "0.001")
    for ranks in (1, 2):
        assert tiny.train(tmp_path / str(ranks), *flags, packs=packs, ranks=ranks) == 0, tiny.output(
            tmp_path / str(ranks)
        )
    one, two = tiny.rows(tmp_path / "1"), tiny.rows(tmp_path / "2")
    assert len(one) == len(two) == 21
    for a, b in zip(one, two, strict=True):
        assert set(a) == set(b)
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-5), (a["nimg"], key)
    assert any(row.get("loss_G", 0) != one[1]["loss_G"] for row in one[2:])


def test_accumulation_gives_the_same_losses(packs, tmp_path):
    flags = ("--total-kimg", "0.08", "--log-kimg", "0.008", "--lr", "0.001")
    assert tiny.train(tmp_path / "a", *flags, packs=packs) == 0
    assert tiny.train(tmp_path / "b", *flags, "--accumulate", "4", packs=packs) == 0
    for a, b in zip(tiny.rows(tmp_path / "a"), tiny.rows(tmp_path / "b"), strict=True):
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=2e-3, abs=1e-5), (a["nimg"], key)


@pytest.mark.parametrize(
    ("how", "code", "state"),
    [
        (signal.SIGUSR2, 85, "continue"),
        (signal.SIGTERM, 85, "continue"),
        (signal.SIGINT, 0, "stopped"),
        ("STOP", 0, "stopped"),
    ],
)
def test_stopping_saves_and_the_run_goes_on(reference, packs, tmp_path, how, code, state):
    run = tmp_path / "run"
    processes = tiny.start(run, *LENGTH, packs=packs)
    tiny.wait_until(
        lambda: (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= 2
    )
    (run / "STOP").touch() if how == "STOP" else processes[0].send_signal(how)
    assert tiny.finish(processes) == [code], tiny.output(run)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == state
    newest = max(int(p.stem) for p in (run / "checkpoints").glob("*.json"))
    assert newest == round(status["kimg"] * 1000) > 0
    assert tiny.train(run, *LENGTH, packs=packs) == 0, tiny.output(run)
    tiny.assert_same_run(run, reference)
    assert not (run / "STOP").exists()


def test_a_requeued_attempt_does_not_lift_a_persons_stop(packs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "STOP").touch()
    assert tiny.train(run, *LENGTH, packs=packs, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1") == 0
    assert (run / "STOP").exists() and not (run / "metrics.jsonl").exists()


def test_save_file_makes_a_checkpoint_and_is_consumed(packs, tmp_path):
    run = tmp_path / "run"
    processes = tiny.start(run, "--total-kimg", "4", "--checkpoint-kimg", "0", packs=packs)
    tiny.wait_until(
        lambda: (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= 2
    )
    (run / "SAVE").touch()
    tiny.wait_until(lambda: any(int(p.stem) > 0 for p in (run / "checkpoints").glob("*.json")))
    assert not (run / "SAVE").exists() and processes[0].poll() is None
    tiny.kill(processes)


def test_longer_total_extends_a_finished_run(packs, tmp_path, monkeypatch):
    """It is then the run that was that long from the start, to the last bit; while it goes on it is not done."""
    whole, parts, done = tmp_path / "whole", tmp_path / "parts", []

    def go(run: Path, kimg: str) -> str:
        flags = ("--total-kimg", kimg, "--sample-kimg", "0.048")  # a run ends with a grid; here one is due there
        outcome = run_main("train_gan.py", "--run", str(run), *flags, packs=packs)
        assert outcome.code == 0, outcome.said
        return outcome.out

    def marks(run: Path) -> tuple:
        status = json.loads((run / "status.json").read_text())
        total = json.loads((run / "config.json").read_text())["total_kimg"]
        return status["state"], status["kimg"], status["total_kimg"], total, (run / "DONE").exists()

    real = train_gan.train_step
    monkeypatch.setattr(train_gan, "train_step", lambda *args: (done.append((parts / "DONE").exists()), real(*args)))
    go(parts, "0.048")
    assert marks(parts) == ("done", 0.048, 0.048, 0.048, True) and done == [False] * 6
    short = tiny.weights_hash(parts)
    go(parts, "0.096")
    assert marks(parts) == ("done", 0.096, 0.096, 0.096, True) and done == [False] * 12
    go(whole, "0.096")
    assert tiny.weights_hash(parts) == tiny.weights_hash(whole) != short
    assert tiny.rows(parts) == tiny.rows(whole)
    attempts = [json.loads(line) for line in (parts / "attempts.jsonl").read_text().splitlines()]
    assert [(e["event"], e["attempt"], e["nimg"]) for e in attempts] == [
        ("start", 1, 0), ("end", 1, 48), ("start", 2, 48), ("end", 2, 96),
    ]  # fmt: skip
    assert "is done" in go(parts, "0.096") and len(done) == 24  # nothing is left to do


def test_other_flags_are_refused_with_a_diff(reference, packs):
    before = tiny.weights_hash(reference)
    more = ("--total-kimg", "0.8")
    assert tiny.train(reference, *more, "--gamma", "7", packs=packs) == 78
    assert "--gamma 0.1 -> 7" in tiny.output(reference)
    assert tiny.train(reference, *more, "--channel-max", "4", "--override", packs=packs) == 78
    assert "architecture" in tiny.output(reference) and "--channel-max 8 -> 4" in tiny.output(reference)
    assert tiny.weights_hash(reference) == before


@pytest.mark.parametrize(("flags", "code", "says"), [
    (("--bach", "8"), 2, "did you mean --batch"),
    (("--batch", "9"), 78, "multiple of"),
    (("--resolution", "48"), 78, "power of two"),
    (("--data", "/no/such/folder"), 78, "/no/such/folder"),
    (("--data", ""), 78, "--data"),
    (("--preset", "adni999"), 78, "adni128"),
    (("--lr", "nan"), 78, "--lr"),
    (("--init-from", "/no/such/run"), 78, "--init-from"),
])  # fmt: skip
def test_wrong_use_gets_one_line(packs, tmp_path, flags, code, says):
    run = tmp_path / "run"
    assert tiny.train(run, *flags, packs=packs) == code
    text = tiny.output(run)
    assert says in text and "Traceback" not in text
    if code == 78:
        assert len([line for line in text.splitlines() if line.startswith("error:")]) == 1


def test_dry_run_prints_the_config_and_makes_nothing(packs, tmp_path):
    run = tmp_path / "run"
    assert tiny.train(run, "--dry-run", packs=packs) == 0
    text = tiny.output(run)
    assert json.loads(text[text.index("{") : text.rindex("}") + 1])["channel_max"] == 8
    assert not run.exists()


def test_divergence_rolls_back_once_then_stops_with_77(packs, tmp_path):
    run = tmp_path / "run"
    assert tiny.train(run, *LENGTH, "--lr", "1e25", packs=packs) == 77
    text = tiny.output(run)
    assert text.count("DIVERGED") == 1 and "again after a roll-back" in text
    assert json.loads((run / "status.json").read_text())["state"] == "diverged"
    for sidecar in (run / "checkpoints").glob("*.json"):
        assert json.loads(sidecar.read_text())["nimg"] == 0  # nothing non-finite was saved


def test_two_processes_on_one_run_the_second_is_refused(packs, tmp_path):
    run = tmp_path / "run"
    first = tiny.start(run, "--total-kimg", "4", packs=packs)
    tiny.wait_until(lambda: (run / "attempts.jsonl").exists())
    second = tiny.finish(tiny.start(run, "--total-kimg", "4", packs=packs))
    assert second == [78] and first[0].poll() is None
    tiny.kill(first)


def test_init_from_starts_with_the_other_runs_weights(reference, packs, tmp_path):
    run = tmp_path / "run"
    assert tiny.train(run, "--total-kimg", "0.008", "--init-from", str(reference), packs=packs) == 0, tiny.output(run)
    from safetensors.torch import load_file

    old, new = load_file(reference / "weights.safetensors"), load_file(run / "weights.safetensors")
    key = (
        "G_ema.mapping_layers.0.weight"
        if "G_ema.mapping_layers.0.weight" in old
        else sorted(k for k in old if k.endswith("weight"))[0]
    )
    assert (old[key] - new[key]).abs().max() < 0.2 * old[key].abs().max()


def test_conditional_run_and_rpgan(packs, tmp_path):
    run = tmp_path / "run"
    assert tiny.train(run, "--total-kimg", "0.08", "--conditional", "--loss", "rpgan", packs=packs) == 0, tiny.output(
        run
    )
    names = set().union(*tiny.rows(run))
    assert {"r2", "diversity_NC", "diversity_AD"} <= names
