"""What a run's figures say against it: each verdict, what follows from it, and who repeats it."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from inprocess import run_main

from jobs.cluster import show, status, why
from jobs.config.specs import ConfigError, DiffusionConfig, GanConfig, VaeConfig
from jobs.predict.yardstick import Yardstick
from jobs.run.rundir import RunDir
from jobs.run.vae import find_vae
from jobs.training import judges, ranks
from jobs.training.upkeep import Record
from jobs.training.weights import read_weights

GAN, VAE, DIFFUSION = (
    GanConfig(total_kimg=1.0, loss="logistic"),
    VaeConfig(total_kimg=1.0),
    DiffusionConfig(total_kimg=1.0),
)
RT = ranks.Runtime(0, 1, 0, torch.device("cpu"), 1)


def judged(c, *rows: dict, nimg: int = 500) -> dict:
    counters = {"healthy": True}
    for row in rows:
        judges.judge(c, row, counters, nimg, lambda text: None)
    return counters


def names(counters: dict) -> list[str]:
    return [key.removeprefix("verdict ") for key in counters if key.startswith("verdict ")]


def of_class(found: float, taken: float, real_found: float, real_taken: float, name: str = "AD") -> dict:
    values = dict(found=found, taken=taken, real_found=real_found, real_taken=real_taken)
    return {f"{key}_{name}": value for key, value in values.items()}


# --- the rules --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("c", "rows", "expected", "healthy"), [
    (GAN, [dict(diversity=1.0), dict(diversity=0.45)], ["NARROWING"], True),
    (GAN, [dict(diversity=1.0), dict(diversity=0.45), dict(diversity=0.47)], [], True),  # it recovers
    (GAN, [dict(diversity=0.3), dict(diversity=0.29)], [], True),  # it has never varied more: it is young
    (GAN, [dict(diversity=1.0), dict(diversity=0.3)], ["MODE COLLAPSE"], False),
    (DIFFUSION, [dict(diversity=1.0), dict(diversity=0.3)], ["MODE COLLAPSE"], False),
    (GAN, [dict(diversity=1.0), dict(diversity=0.3), dict(loss_G=1.0)], ["MODE COLLAPSE"], False),  # until it is asked
    (GAN, [dict(diversity=1.0), dict(diversity=0.3), dict(diversity=0.8)], [], True),
    (GAN, [dict(diversity=1.0, loss_D=0.1)] * 3, ["D FAR AHEAD"], True),
    (GAN, [dict(diversity=1.0, loss_D=0.1)] * 2 + [dict(diversity=1.0, loss_D=0.5)], [], True),
    (GAN, [dict(diversity=1.0, loss_D=loss) for loss in (0.1, 0.1, 0.5, 0.1)], [], True),  # in a row
    (replace(GAN, loss="rpgan"), [dict(diversity=1.0, loss_D=0.15)] * 3, [], True),
    (GAN, [dict(copies=0.3)], ["COPIES"], True), (GAN, [dict(copies=0.1)], [], True),
    (GAN, [of_class(0.2, 0.1, 0.75, 0.3)], ["CLASS LOST"], True), (GAN, [of_class(0.2, 0.1, 0.65, 0.3)], [], True),
    (GAN, [of_class(0.5, 0.5, 1.0, 0.0)], ["CLASS LOST"], True),
    (GAN, [of_class(0.0, 1.0, 1.0, 0.0)], ["CLASS LOST"], True),
    (GAN, [of_class(0.6, 0.31, 1.0, 0.0)], ["CLASS LOST"], True), (GAN, [of_class(0.6, 0.29, 1.0, 0.0)], [], True),
    (GAN, [dict(found_AD=0.0, taken_AD=0.5)], [], True),  # no held-out ones to compare with
    (VAE, [dict(active_channels=0)], ["POSTERIOR COLLAPSE"], False), (VAE, [dict(active_channels=1)], [], True),
    (VAE, [dict(mean_slice_psnr=14.0, val_psnr=13.9)], ["NO RECONSTRUCTION"], False),
    (VAE, [dict(mean_slice_psnr=14.0, train_psnr=14.1)], [], True),
    (DIFFUSION, [dict(sample_spread=1.6)], ["OUT OF RANGE"], False),
    (DIFFUSION, [dict(sample_spread=0.4)], ["OUT OF RANGE"], False), (DIFFUSION, [dict(sample_spread=1.2)], [], True),
    (DIFFUSION, [dict(sample_spread=float("nan"))], ["OUT OF RANGE"], False),
])  # fmt: skip
def test_verdicts(c, rows, expected, healthy):
    counters = judged(c, *rows)
    assert names(counters) == expected and counters["healthy"] is healthy
    assert all(name in judges.verdict(counters) for name in expected) and bool(judges.verdict(counters)) == bool(
        expected
    )


def test_what_a_checkpoint_says_of_health_stays_until_samples_are_looked_at():
    """A run that an older version found collapsed has no verdict, and its healthy weights are to stay."""
    counters = {"healthy": False}
    judges.judge(GAN, {"loss_G": 1.0, "copies": 0.0}, counters, 500, lambda text: None)
    assert not counters["healthy"]
    judges.judge(GAN, {"diversity": 1.0}, counters, 500, lambda text: None)
    assert counters["healthy"]


def test_two_lost_classes_are_both_named():
    row = of_class(0.1, 0.0, 0.8, 0.1, "A") | of_class(0.1, 0.0, 0.8, 0.1, "B") | of_class(0.9, 0.45, 0.8, 0.1, "C")
    text = judges.verdict(judged(GAN, row))
    assert "A (10% and 0%; of held-out ones 80% and 10%), B (" in text and "C (" not in text
    assert names(judged(GAN, row, nimg=99)) == []


@pytest.mark.parametrize(("flags", "says"), [
    (dict(loss="logistic", pl_weight=2.0, style_mixing=0.9, ada="off"),
     "try --loss rpgan, another --gamma than 2, or --ada mri"),
    (dict(loss="rpgan", pl_weight=0.0, style_mixing=0.0, ada="mri"), "try another --gamma than 2"),
    (dict(loss="rpgan", pl_weight=1.0, style_mixing=0.0, ada="mri"), "try --pl-weight 0, another --gamma than 2"),
    (dict(loss="rpgan", pl_weight=0.0, style_mixing=0.5, ada="mri"), "try --style-mixing 0, another --gamma than 2"),
])  # fmt: skip
def test_what_a_run_has_already_is_not_what_it_should_try(flags, says):
    rows = dict(diversity=1.0), dict(diversity=0.45)
    assert judges.verdict(judged(replace(GAN, gamma=2.0, **flags), *rows)).endswith(says)
    assert judges.verdict(judged(DIFFUSION, *rows)).endswith("try more data or a longer run")


def test_the_young_are_not_held_to_account():
    for c, row in ((VAE, dict(active_channels=0)), (VAE, dict(mean_slice_psnr=14.0, val_psnr=9.0)),
                   (DIFFUSION, dict(sample_spread=9.0))):  # fmt: skip
        assert names(judged(c, row, nimg=99)) == [] and names(judged(c, row, nimg=100))


# --- samples as the yardstick measures them ---------------------------------------------------------------------------
class Slices:
    """A pack of pictures of 16 px: smooth noise, brighter above where the class is 1. Five of a person."""

    def __init__(self, count: int, gen: torch.Generator):
        labels = torch.arange(count) % 2
        x = F.interpolate(torch.randn(count, 1, 6, 6, generator=gen), 16, mode="bilinear")
        x[:, :, :8] += 1.5 * labels[:, None, None, None]
        self.images = (x * 40 + 110).clamp(0, 255).round().to(torch.uint8).numpy()
        self.labels, self.digest, self.classes = labels.numpy(), f"{count:012d}", ["NC", "AD"]
        self.names = [str(i) for i in range(count)]
        self.subjects = [f"person {i // 5}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.labels)


def test_copies_and_lost_classes_show_in_the_figures():
    """Samples that are training slices, mirrored and moved, and samples of one class under both names, beside honest
    ones."""
    gen = torch.Generator().manual_seed(0)
    train, held, honest = (Slices(count, gen) for count in (200, 100, 200))

    def network(images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(images.float() / 40, 4).flatten(1)

    def drawn(pack: Slices, asked=lambda labels: labels, move=lambda x: x):
        def images_of(labels):
            own, want = [np.flatnonzero(pack.labels == k) for k in (0, 1)], asked(labels)
            rows = [own[int(k)][i // 2] for i, k in enumerate(want)]
            return lambda indices: move(torch.from_numpy(pack.images[[rows[i] for i in indices]]))

        return images_of

    def figures(*how, packs=(train, held), say=print, **more):
        draw = drawn(*how, **more)
        return Yardstick(RT, (network, "pixels"), list(packs), draw, 50, say, classes=["NC", "AD"])()

    good, lost = figures(honest), figures(honest, asked=torch.zeros_like)
    ignored = figures(honest, asked=lambda labels: (torch.arange(len(labels)) // 2) % 2)  # both classes, of either name
    copied = figures(train, move=lambda x: x.flip(-1).roll(1, -2))
    assert good["copies"] < 0.2 and copied["copies"] > 0.8
    assert min(good["found_AD"], good["found_NC"], good["real_found_AD"]) > 0.8 and lost["found_AD"] < 0.2
    assert names(judged(GAN, good)) == [] and names(judged(GAN, copied)) == ["COPIES"]
    assert names(judged(GAN, lost)) == names(judged(GAN, ignored)) == ["CLASS LOST"]
    assert (
        min(ignored["found_AD"], ignored["found_NC"]) > 0.3 and good["taken_AD"] < 0.2 and good["real_taken_NC"] < 0.2
    )
    said: list[str] = []
    assert "found_AD" not in figures(honest, packs=[train], say=said.append)
    assert said == ["no class is looked for: too few slices are held out"]
    held.labels = np.arange(len(held)) % 10 // 9  # ten of AD
    said.clear()
    rare = figures(honest, asked=torch.zeros_like, say=said.append)
    assert not any(name.startswith("real_found") for name in rare) and names(judged(GAN, rare)) == []
    assert len(said) == 1 and "class is lost, for NC, AD: it takes 20 samples" in said[0]


# --- a VAE whose latents carry nothing --------------------------------------------------------------------------------
COLLAPSES = "--kl-weight 100 --gan-weight 0 --total-kimg 0.16 --checkpoint-kimg 0 --sample-kimg 0.08"


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory):
    room = tmp_path_factory.mktemp("judges")
    outcome = run_main("pretrain_vae.py", "--run", room / "vae", *COLLAPSES.split(), packs=room / "packs")
    return room, outcome


def test_a_collapsed_vae_is_said_everywhere_and_trained_on_only_if_told(collapsed):
    room, outcome = collapsed
    assert outcome.code == 0 and "WARNING: POSTERIOR COLLAPSE: no channel" in outcome.said, outcome.said
    run = RunDir(room / "vae")
    assert run.read_status()["state"] == "done" and "POSTERIOR COLLAPSE" in run.read_status()["verdict"]
    assert "POSTERIOR COLLAPSE" in read_weights(run.weights)[1]["verdict"]
    assert tiny.rows(run.path)[-1]["active_channels"] == 0
    view, cause = why.explain(run.path, None)
    assert view.told.startswith("POSTERIOR COLLAPSE") and "--kl-weight" in cause.text and "new run" in cause.fix
    end = outcome.said[outcome.said.index("DONE:") :]
    assert "but          POSTERIOR COLLAPSE" in end and "of noise alone: they carry nothing" in end
    assert (
        "predict.py reconstruct" in end and "--vae" not in end and not any("--vae" in x for x in show.after(run.path))
    )
    again = run_main("pretrain_vae.py", "--run", run.path, *COLLAPSES.split(), packs=room / "packs")
    assert "is done" in again.said and "but          POSTERIOR COLLAPSE" in again.said and "--vae" not in again.said
    assert status.view_run(run.path, None).state == "done"
    c = DiffusionConfig(**{k: run.read_config()[k] for k in ("data", "resolution", "channels", "crop")})
    c = replace(c, run=str(room / "ldm"))
    with pytest.raises(ConfigError, match="carry nothing"):
        find_vae(c)
    with pytest.raises(ConfigError, match="--override"):
        find_vae(replace(c, vae=str(run.path)))
    told = replace(c, override=True)
    assert find_vae(told) == run.weights == find_vae(replace(told, vae=str(run.path)))
    words = ("--run", room / "ldm", "--vae", run.path, "--total-kimg", "0.008")
    refused = run_main("train_diffusion.py", *words, packs=room / "packs")
    assert refused.code == 78 and "POSTERIOR COLLAPSE" in refused.said and "--override" in refused.said
    assert RunDir(room / "ldm").read_config() is None  # so the next command may name another VAE
    # Weights that have left their run say it themselves.
    away = room / "away.safetensors"
    away.write_bytes(run.weights.read_bytes())
    refused = run_main("train_diffusion.py", "--run", room / "other", "--vae", away, packs=room / "packs")
    assert refused.code == 78 and "POSTERIOR COLLAPSE" in refused.said
    taken = run_main("train_diffusion.py", *words, "--override", packs=room / "packs")
    assert taken.code == 0, taken.said
    # Told once: a requeued job runs without the flag.
    longer = run_main("train_diffusion.py", *words[:-1], "0.016", packs=room / "packs")
    assert longer.code == 0, longer.said


def test_a_verdict_outlives_a_stop(collapsed):
    """A resumed run says it before its next look: it is in the checkpoint."""
    room, _ = collapsed
    flags = "--kl-weight 100 --gan-weight 0 --checkpoint-kimg 0 --sample-kimg 1 --total-kimg 0.168 --log-kimg 1".split()
    with mock.patch.object(Record, "tick"):  # no look at all
        outcome = run_main("pretrain_vae.py", "--run", room / "vae", *flags, "--override", packs=room / "packs")
    assert outcome.code == 0 and "POSTERIOR COLLAPSE" in RunDir(room / "vae").read_status()["verdict"]
