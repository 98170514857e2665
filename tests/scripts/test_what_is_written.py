"""What a run leaves is what it has trained: the three scripts through main(), looked at from outside."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from unittest import mock

import pytest
import tiny
import torch
from inprocess import run_main
from safetensors import safe_open

from data.batches import Batches
from data.latents import LatentBatches
from jobs.predict import gan_look
from jobs.run import stopping
from jobs.run.rundir import RunDir
from jobs.training import upkeep

GAN, VAE, DIFFUSION = SCRIPTS = ("train_gan.py", "pretrain_vae.py", "train_diffusion.py")
LENGTH = ("--total-kimg", "0.104")  # checkpoints at 0, 48, 96 and the end
FLAGS = {GAN: ("--conditional",), VAE: ("--gan-start-kimg", "0.04"), DIFFUSION: ("--conditional",)}


class Runs:
    """Undisturbed runs of each script, made when they are asked for; diffusion takes the VAE of this folder."""

    def __init__(self, folder: Path, packs: Path):
        self.folder, self.packs = folder, packs

    def go(self, name: str, script: str, *flags: str):
        """One attempt at a run of this name, which need not be its first."""
        vae = ("--vae", str(self.whole(VAE))) if script == DIFFUSION else ()
        return run_main(script, "--run", str(self.folder / name), *FLAGS[script], *vae, *flags, packs=self.packs)

    def whole(self, script: str) -> Path:
        run = self.folder / Path(script).stem
        if not run.exists():
            outcome = self.go(run.name, script, *LENGTH)
            assert outcome.code == 0, outcome.said
        return run


@pytest.fixture(scope="module")
def runs(packs, tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), packs)


@contextlib.contextmanager
def at(nimg: int, action):
    """`action(upkeep)` when the loop stands at `nimg` images; gives the places at which it stood."""
    real, places = upkeep.Upkeep.agree, []

    def agree(self, now: int) -> bool:
        places.append(now)
        if now == nimg:
            action(self)
        return real(self, now)

    with mock.patch.object(upkeep.Upkeep, "agree", agree):
        yield places


def weights(path: Path) -> tuple[dict, dict]:
    """(tensors, what the file says of them), read without the toolkit."""
    with safe_open(str(path), "pt") as file:
        assert set(file.metadata()) == {"config"}
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


def checkpoint(run: Path, nimg: int) -> dict:
    return torch.load(run / "checkpoints" / f"{nimg:012d}.pt", weights_only=True)


def markers(run: Path) -> dict[int, bool]:
    """{images: healthy} of the checkpoints."""
    return {int(p.stem): json.loads(p.read_text())["healthy"] for p in sorted((run / "checkpoints").glob("*.json"))}


def lines(run: Path, *names: str) -> list[tuple]:
    """Of each line of attempts.jsonl the event and these fields."""
    found = [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]
    return [(line["event"], *(line.get(name) for name in names)) for line in found]


def below(name: str, tensors: dict) -> dict:
    return {f"{name}.{key}": value for key, value in tensors.items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_weights_are_the_moving_average_of_the_last_checkpoint(runs, script):
    """Tensor by tensor, with all that predict.py needs beside it, and with words that say what it is."""
    run = runs.whole(script)
    assert list(markers(run)) == [96, 104]
    state, (tensors, about) = checkpoint(run, 104), weights(run / "weights.safetensors")
    network, average = {GAN: ("G", "G_ema"), VAE: ("vae", "vae_ema"), DIFFUSION: ("unet", "unet_ema")}[script]
    expected = below({GAN: "G_ema", VAE: "vae", DIFFUSION: "unet"}[script], state[average])
    if script == DIFFUSION:
        decoder, _ = weights(runs.whole(VAE) / "weights.safetensors")
        expected |= below("latent_scale", state["scale"])
        expected |= {k.replace("vae.", "vae_", 1): v for k, v in decoder.items() if k.startswith("vae.decoder.")}
        mean, std = (state["scale"][k] for k in ("mean", "std"))
        assert (mean != 0).all() and (std != 1).all()  # else it would not matter
    assert same(tensors, expected)
    assert not same(state[network], state[average])  # the average, not the network of the last step
    config = json.loads((run / "config.json").read_text())
    assert (about["nimg"], about["classes"]) == (104, ["NC", "AD"])
    assert about["job"] == {GAN: "stylegan2", VAE: "vae", DIFFUSION: "diffusion"}[script]
    assert about["geometry"] == {"crop": 0, "resolution": 32, "source_height": 32, "source_width": 32, "square": 32}
    assert about["config"].items() <= config.items()
    free = {
        "run",
        "preset",
        "total_kimg",
        "keep",
        "log_kimg",
        "sample_kimg",
        "checkpoint_kimg",
        "threads",
        "accumulate",
    }
    assert not free & set(about["config"])  # what does not change the result does not change the file
    assert {"resolution", "channels", "crop", "batch", "seed", "lr", "data", "split"} <= set(about["config"])
    if script == DIFFUSION:
        assert about["shape"] == [2, 8, 8]
        assert about["vae"] == {"channels": 1, "down": 4, "latent_channels": 2, "num_res": 1, "width": 8}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_finished_run_says_that_it_is(runs, script):
    run = runs.whole(script)
    status = json.loads((run / "status.json").read_text())
    expected = {"state": "done", "code": 0, "kimg": 0.104, "total_kimg": 0.104, "step": 13, "attempt": 1, "eta_s": 0}
    assert expected.items() <= status.items()
    assert lines(run, "nimg", "code", "reason") == [("start", 0, None, None), ("end", 104, 0, "finished")]
    assert (run / "DONE").exists() and not (run / "LOCK").exists()
    assert [row["nimg"] for row in tiny.rows(run)] == [0, 40, 80, 104]
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["00000.000.png", "00000.104.png", "reals.png"]


@pytest.mark.parametrize(("script", "how", "code", "state"), [
    (GAN, "STOP", 0, "stopped"), (VAE, "USR1", 85, "continue"), (DIFFUSION, "TERM", 85, "continue"),
])  # fmt: skip
def test_a_stopped_run_has_saved_where_it_stopped_and_goes_on_to_the_same_bits(runs, script, how, code, state):
    """At 56 images, where neither a row nor a checkpoint is due."""
    whole, run = runs.whole(script), runs.folder / f"stopped-{Path(script).stem}"

    def ask(upkeep) -> None:
        if how == "STOP":
            (run / "STOP").touch()
            upkeep.watch._looked = -1.0  # files are looked at once a second
        else:
            stopping._received.append(how)

    with at(56, ask) as places:
        assert runs.go(run.name, script, *LENGTH).code == code
    assert places == list(range(0, 57, 8)) and list(markers(run)) == [48, 56]
    status, reason = RunDir(run).read_status(), "STOP file" if how == "STOP" else how
    expected = {"state": state, "code": code, "kimg": 0.056, "reason": reason}
    assert expected.items() <= status.items() and not (run / "DONE").exists()
    assert lines(run, "nimg", "code", "reason") == [("start", 0, None, None), ("end", 56, code, reason)]
    tensors, about = weights(run / "weights.safetensors")
    average = {GAN: ("G_ema", "G_ema"), VAE: ("vae", "vae_ema"), DIFFUSION: ("unet", "unet_ema")}[script]
    saved = below(average[0], checkpoint(run, 56)[average[1]])
    assert about["nimg"] == 56 and same({name: tensors[name] for name in saved}, saved)
    if how == "STOP":
        os.utime(run / "STOP", (1e9, 1e9))  # before the second command began: here both are this process
    with at(-1, None) as places:
        outcome = runs.go(run.name, script, *LENGTH)
    assert outcome.code == 0 and places == list(range(56, 105, 8)), outcome.said
    assert tiny.weights_hash(run) == tiny.weights_hash(whole) and tiny.rows(run) == tiny.rows(whole)
    assert lines(run, "nimg", "code")[-2:] == [("start", 56, None), ("end", 104, 0)] and not (run / "STOP").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_poisoned_batch_is_rolled_back_over_and_left_out(runs, script):
    """The slices at 24 are not numbers. Noticed at the save of 32; from 16 on the run takes the slices behind them."""
    run, seen = runs.folder / f"poisoned-{Path(script).stem}", []
    kind = LatentBatches if script == DIFFUSION else Batches
    real = kind.rows

    def rows(self, position: int, start: int, stop_: int):
        first, *others = real(self, position, start, stop_)
        if seen[-1:] != [position]:
            seen.append(position)
        return (first * float("nan") if position == 24 else first, *others)

    with mock.patch.object(kind, "rows", rows):
        outcome = runs.go(
            run.name, script, "--total-kimg", "0.064", "--checkpoint-kimg", "0.016", "--log-kimg", "0.016"
        )
    assert outcome.code == 0, outcome.said
    assert outcome.out.count("DIVERGED") == 1 and "0.016 kimg; those data are skipped" in outcome.out
    assert seen == [0, 8, 16, 24, *range(32, 73, 8)]
    state = checkpoint(run, 64)
    assert {"skip": 16, "rollbacks": 1}.items() <= state["counters"].items()
    assert all(v.isfinite().all() for v in weights(run / "weights.safetensors")[0].values())
    assert [row["nimg"] for row in tiny.rows(run)] == [0, 16, 32, 48, 64]
    assert all("nonfinite" not in row for row in tiny.rows(run)) and RunDir(run).read_status()["state"] == "done"


def test_checkpoints_of_a_collapsed_generator_are_marked_and_the_last_healthy_one_stays(runs):
    """Its slices vary as real ones at 16 images and no more from 32 on: a checkpoint and weights from before remain."""
    run, ratios = runs.folder / "collapsed", iter([1.0, 1.0, 0.1, 0.1, 0.1])
    flags = "--total-kimg 0.064 --checkpoint-kimg 0.016 --sample-kimg 0.016 --keep 1 --no-conditional".split()
    with mock.patch.object(gan_look, "diversity_ratio", lambda fake, real: next(ratios)):
        outcome = runs.go(run.name, GAN, *flags)
    assert outcome.code == 0 and "MODE COLLAPSE" in outcome.out, outcome.said
    assert markers(run) == {16: True, 64: False}
    tensors, about = weights(run / "weights-healthy.safetensors")
    assert about["nimg"] == 16 and same(tensors, below("G_ema", checkpoint(run, 16)["G_ema"]))
    tensors, about = weights(run / "weights.safetensors")
    assert about["nimg"] == 64 and same(tensors, below("G_ema", checkpoint(run, 64)["G_ema"]))


@pytest.mark.parametrize("script", [VAE, DIFFUSION])
def test_other_data_are_refused(runs, script):
    """By the digest that the run began with; what is refused has changed nothing. (train_gan.py: test_gan_main.py)"""
    few = ("--checkpoint-kimg", "0", "--log-kimg", "1", "--sample-kimg", "1")
    name = f"other-{Path(script).stem}"
    assert runs.go(name, script, "--total-kimg", "0.008", *few).code == 0
    path = runs.folder / name / "data.json"
    about = json.loads(path.read_text())
    about["digests"]["train"] = "0" * 64
    path.write_text(json.dumps(about))
    refused = runs.go(name, script, "--total-kimg", "0.016", *few)
    assert refused.code == 78 and "slices (train)" in refused.said
    assert json.loads((runs.folder / name / "config.json").read_text())["total_kimg"] == 0.008
    assert (runs.folder / name / "DONE").exists()
