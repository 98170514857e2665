"""Every flag of the three train scripts has an effect, once: main() in process, a few steps, one flag at another value.

A table per script has an entry for every field of its config; a field without one is a failure. What changes the result
must change exactly those parts of the checkpoints that it should (a half-life the average alone, ADA's speed its p
alone). What is free must leave the run as it was, to the last bit, and have an effect of its own.

The state is everything in a checkpoint, in parts: every network (`G.w_avg` apart), of every optimizer its `rates` and
its `moments`, and all else that the next step depends on. The base runs save at every step, so that a row can say when.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import json
import math
import os
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints
from unittest import mock

import numpy as np
import pytest
import torch
from inprocess import Outcome, run_main
from PIL import Image
from test_perceptual import narrow
from tiny import TIMING

from data import batches, latents
from jobs.cluster import preflight
from jobs.config import kinds, parsing, rules, specs
from jobs.config.specs import AUTO, ConfigError, DiffusionConfig, GanConfig, VaeConfig
from jobs.predict import yardstick
from jobs.run.resume import compare_with_run
from jobs.run.rundir import RunDir
from jobs.training import judges, randomness, upkeep
from jobs.training.upkeep import Record
from jobs.training.weights import read_weights
from models import encoder, loading, quality, samplers

# --- what is promised, written out again ------------------------------------------------------------------------------
FREE = set(
    "run preset dry_run toml override init_from total_kimg device compile threads log_kimg sample_kimg "
    "checkpoint_minutes "
    "checkpoint_kimg "
    "keep keep_weights stop_when_worse metric_kimg feature_weights max_bad val_split sampler steps accumulate".split()
)
ARCHITECTURE = set(
    "resolution channels conditional condition z_dim w_dim mapping_layers channel_base channel_max mbstd_group down "
    "latent_channels width "
    "num_res disc_width space vae widths attention head_dim".split()
)
_TRAIN = dict(
    run="", preset="", data="", split="train", val_split="auto", max_bad=0.01, seed=0, dry_run=False, toml=False,
    override=False,
    init_from="", resolution=256,
    channels=1, crop=0, include="", exclude="", table="", plane="", slices="", range="", spacing="", volume="",
    batch=64, accumulate=1, total_kimg=2000.0, ema_kimg=200.0, ema_rampup=0.05, precision="auto",
    device="auto", compile=False,
    threads=0, log_kimg=4.0, sample_kimg=50.0, checkpoint_minutes=10.0, checkpoint_kimg=0.0, keep=2,
    keep_weights=0, stop_when_worse=False,
)  # fmt: skip
_SAMPLING = dict(condition="", metric_kimg=0.0, feature_weights="")
_DENOISING = _TRAIN | dict(lr=1e-4, warmup_kimg=20.0, decay_kimg=0.0, weight_decay=0.01, clip=1.0)
DEFAULTS: dict[type, dict] = {
    GanConfig: _TRAIN | _SAMPLING | dict(
        total_kimg=5000.0, ema_kimg=-2.0, conditional=False, hflip=False, z_dim=512, w_dim=512, mapping_layers=8,
        channel_base=16384,
        channel_max=512, mbstd_group=-2, loss="rpgan", gamma=-2.0, r1_interval=-2, pl_weight=-2.0, pl_interval=4,
        pl_decay=0.01,
        style_mixing=-2.0, ada="mri", ada_target=-2.0, ada_kimg=-2.0, lr=0.0025,
    ),
    VaeConfig: _DENOISING | dict(
        down=8, latent_channels=8, width=64, num_res=2, hflip=False, decay="cosine", plateau_kimg=50.0, loss="l1",
        kl_weight=1e-4,
        structure_weight=0.1, perceptual_file="", perceptual_weight=0.1, gan_weight=0.5, gan_start_kimg=200.0,
        disc_width=64,
    ),
    DiffusionConfig: _DENOISING | _SAMPLING | dict(
        space="latent", vae="", conditional=False, class_dropout=0.1, widths="64,128,256", num_res=2, attention="16,8",
        head_dim=64,
        dropout=0.1, schedule="flow", target="flow", times="logit-normal", fast_steps=10, min_snr_gamma=0.0,
        sampler="midpoint",
        steps=20,
    ),
}  # fmt: skip
PRESETS: dict[type, dict[str, dict]] = {
    GanConfig: {
        "adni256": dict(resolution=256, batch=64, total_kimg=5000.0, metric_kimg=50.0),
        "adni128": dict(resolution=128, batch=64, total_kimg=4000.0, metric_kimg=50.0),
        "oasis128": dict(resolution=128, batch=64, total_kimg=3000.0, metric_kimg=50.0),
        "oasis64": dict(resolution=64, crop=208, batch=64, total_kimg=2000.0, metric_kimg=50.0),
        "quickstart": dict(
            data="phantom:2000", resolution=64, batch=16, total_kimg=28.0, channel_base=1024, channel_max=64, z_dim=64,
            w_dim=64,
            mapping_layers=2, ema_kimg=1.5, ema_rampup=0.1, ada="off", lr=0.004,
            log_kimg=0.5, sample_kimg=4.0, checkpoint_minutes=1.0, metric_kimg=4.0,
        ),
    },
    VaeConfig: {
        "adni256-ldm": dict(resolution=256, batch=32, total_kimg=1500.0, decay_kimg=1500.0, ema_kimg=50.0),
        "quickstart": dict(
            data="phantom:2000", resolution=64, batch=8, total_kimg=12.0, precision="fp32", down=4, latent_channels=8,
            width=16,
            num_res=1, gan_weight=0.0, lr=2e-3, warmup_kimg=0.5, decay_kimg=12.0, ema_kimg=0.5, log_kimg=0.5,
            sample_kimg=4.0,
            checkpoint_minutes=1.0,
        ),
    },
    DiffusionConfig: {
        "adni256-ldm": dict(
            resolution=256, batch=128, total_kimg=10000.0, lr=2e-4, warmup_kimg=130.0, decay_kimg=10000.0,
            ema_kimg=500.0,
            widths="128,256,256", conditional=True, sample_kimg=200.0, log_kimg=10.0, metric_kimg=200.0,
        ),
        "quickstart": dict(
            data="phantom:2000", resolution=64, batch=32, total_kimg=60.0, precision="fp32", lr=1e-3, warmup_kimg=1.0,
            decay_kimg=60.0,
            ema_kimg=2.0, widths="48,96", num_res=1, attention="8", head_dim=48, dropout=0.0, conditional=True,
            log_kimg=1.0,
            sample_kimg=12.0, checkpoint_minutes=1.0, metric_kimg=20.0,
        ),
    },
}  # fmt: skip
_CHOICES = dict(
    split=("train", "test", "val", "all"),
    val_split=("auto", "val", "test", "none"),
    plane=("", "axial", "coronal", "sagittal"),
    channels=(1, 3),
    precision=("auto", "bf16", "fp16", "fp32"),
    device=("auto", "cpu", "cuda"),
)
CHOICES: dict[type, dict[str, tuple]] = {
    GanConfig: _CHOICES | dict(loss=("logistic", "rpgan"), ada=("off", "mri", "mri-flip")),
    VaeConfig: _CHOICES | dict(
        down=(2, 4, 8), decay=("cosine", "plateau"), loss=("l1", "mse"),
    ),
    DiffusionConfig: _CHOICES | dict(
        space=("latent", "pixel"),
        schedule=("linear", "scaled-linear", "cosine", "zero-snr", "flow"), target=("epsilon", "x0", "v", "flow"),
        times=("uniform", "logit-normal", "fast-uniform", "fast-nonuniform"),
        sampler=("midpoint", "dpmpp-2m", "ddim", "ancestral", "heun"),
    ),
}  # fmt: skip
CONFIGS = {"train_gan.py": GanConfig, "pretrain_vae.py": VaeConfig, "train_diffusion.py": DiffusionConfig}
JOB_NAME = {GanConfig: "stylegan2", VaeConfig: "vae", DiffusionConfig: "diffusion"}
EVERY_FIELD = [(cls, f.name) for cls in CONFIGS.values() for f in fields(cls)]
of_field = pytest.mark.parametrize(("cls", "name"), EVERY_FIELD, ids=[f"{JOB_NAME[c]}-{n}" for c, n in EVERY_FIELD])


@pytest.mark.parametrize("cls", CONFIGS.values())
def test_defaults_presets_and_choices_are_those_that_were_promised(cls):
    """A preset is a recipe, and a run that was made with it is to be repeated next year."""
    assert asdict(cls()) == DEFAULTS[cls]
    assert kinds.JOBS[JOB_NAME[cls]].presets == PRESETS[cls]
    hints = {name: get_args(hint) for name, hint in get_type_hints(cls).items() if get_args(hint)}
    assert hints == CHOICES[cls]
    for values in (DEFAULTS[cls], *PRESETS[cls].values()):
        assert {type(values[name]) for name in values.keys() & CHOICES[cls].keys()} <= {str, int}
        assert all(values[name] in CHOICES[cls][name] for name in values.keys() & CHOICES[cls].keys())


def test_the_jobs_their_scripts_and_their_presets():
    assert {name: (job.script, job.config) for name, job in kinds.JOBS.items()} == {
        JOB_NAME[cls]: (script, cls) for script, cls in CONFIGS.items()
    }
    assert {cls: kinds.name_of(cls) for cls in CONFIGS.values()} == JOB_NAME
    default = {job.config: job.default_preset for job in kinds.JOBS.values()}
    assert default == {GanConfig: "adni256", VaeConfig: "adni256-ldm", DiffusionConfig: "adni256-ldm"}


def test_what_is_free_and_what_is_architecture():
    assert set(rules.FREE) == FREE and set(rules.ARCHITECTURE) == ARCHITECTURE and not FREE & ARCHITECTURE
    assert {name for _, name in EVERY_FIELD} >= FREE | ARCHITECTURE


# --- what a run that has begun lets differ ----------------------------------------------------------------------------
def another(cls: type, name: str):
    """A value of the field's type that is not its default."""
    value = DEFAULTS[cls][name]
    if name in CHOICES[cls]:
        return next(v for v in CHOICES[cls][name] if v != value)
    if isinstance(value, bool):
        return not value
    return value + (",8" if name in ("widths", "attention") else "x") if isinstance(value, str) else value + 1


@pytest.fixture(scope="module", autouse=True)
def small_networks_are_young():
    """They are worse than the mean slice, and would have no healthy weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "SETTLED", 99.0)
        yield


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> dict[type, RunDir]:
    """A run directory of each job that has stored the defaults."""
    runs = {}
    for cls, job in JOB_NAME.items():
        runs[cls] = RunDir(tmp_path_factory.mktemp("begun") / job)
        runs[cls].create()
        runs[cls].write_config(asdict(cls()))
    return runs


@of_field
def test_a_run_goes_on_with_other_flags_where_they_change_no_result(begun, cls, name):
    """Free ones may differ; others with --override, which is noted; the architecture never. launch.py says the same
    first."""
    config, run = replace(cls(), **{name: another(cls, name)}), begun[cls]
    text = f"--{name.replace('_', '-')} {DEFAULTS[cls][name]} -> {another(cls, name)}"
    for c in (config, replace(config, override=True)):
        allowed = name in FREE or (c.override and name not in ARCHITECTURE)
        (early,) = preflight.check_config(
            SimpleNamespace(run=run.path, job=JOB_NAME[cls], world=1, config=c, gres="", memory_gb=lambda: 1.0)
        )
        assert early.level == ("fail" if not allowed else "ok" if name in FREE else "warn")
        if allowed:
            assert compare_with_run(run, c) == ("" if name in FREE else text)
            assert (text in early.text) == (name not in FREE)
            continue
        with pytest.raises(ConfigError) as refused:
            compare_with_run(run, c)
        assert refused.value.exit_code == 78 and text in str(refused.value) and text in early.text
        for words in (str(refused.value), early.text + early.fix):
            assert ("another architecture" in words) == (name in ARCHITECTURE)
            assert ("--override" in words) == (name not in ARCHITECTURE)


def test_a_run_may_be_longer_but_not_end_before_what_it_has_seen(begun):
    for cls, run in begun.items():
        with mock.patch.object(RunDir, "newest_checkpoint", lambda self: 1_000_000):
            for kimg in (1000.0, 1999.0, 1e6):
                assert compare_with_run(run, replace(cls(), total_kimg=kimg)) == ""
            with pytest.raises(ConfigError, match=r"--total-kimg 999\.9"):
                compare_with_run(run, replace(cls(), total_kimg=999.9))


@of_field
def test_a_runs_name_and_its_weights_tell_exactly_what_changes_the_result(cls, name):
    base, other = cls(), replace(cls(), **{name: another(cls, name)})
    assert parsing.result_fields(base) == {k: v for k, v in DEFAULTS[cls].items() if k not in FREE}
    assert list(parsing.result_fields(base)) == sorted(parsing.result_fields(base))
    differs = name not in FREE or name == "init_from"  # another start, which a run that resumes has behind it
    assert (parsing.config_hash(other) != parsing.config_hash(base)) == differs
    assert parsing.default_name(other) == f"{JOB_NAME[cls]}-{parsing.config_hash(other)}"
    assert (parsing.result_fields(other) != parsing.result_fields(base)) == (name not in FREE)
    assert len(parsing.config_hash(other)) == 8 and int(parsing.config_hash(other), 16) >= 0


def test_names_of_runs_stay_those_of_earlier_versions():
    """The same command finds the run that it began last month: the name is a function of the values alone."""
    for cls, job in JOB_NAME.items():
        chosen = (
            "include exclude table plane slices range spacing volume condition".split()
        )  # later than the first runs
        content = {k: v for k, v in DEFAULTS[cls].items() if k not in FREE and k not in chosen}
        name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
        assert parsing.default_name(cls()) == f"{job}-{name}"


# --- one run of main() and what it left -------------------------------------------------------------------------------
TOTAL = 20  # images of a base run: five steps of four
COMMON = (
    "--preset quickstart --resolution 32 --batch 4 --threads 1 --precision fp32 --total-kimg 0.02 --ema-kimg 0.02 "
    "--ema-rampup 0 "
    "--log-kimg 0.004 --sample-kimg 99 --checkpoint-minutes 0 --checkpoint-kimg 0.004 --keep 99 --lr 0.001"
)
DENOISING = f"{COMMON} --warmup-kimg 0.008 --decay-kimg 1"
BASE = {
    "train_gan.py": f"{COMMON} --channel-base 128 --channel-max 8 --z-dim 8 --w-dim 8 --mapping-layers 2 --mbstd-group "
    "2 "
    "--metric-kimg 0 "
    "--loss logistic --gamma 1 --r1-interval 16 --pl-weight 2 --pl-interval 4 --style-mixing 0.9 --ada mri "
    "--ada-target -1 --ada-kimg 0.04",
    "pretrain_vae.py": f"{DENOISING} --width 4 --down 4 --latent-channels 2 --num-res 1 --gan-weight 0.5 "
    "--gan-start-kimg 0.008 "
    "--disc-width 4",
    "train_diffusion.py": f"{DENOISING} --widths 8,16 --head-dim 8 --num-res 1 --attention 4 --dropout 0.1 "
    "--class-dropout 0.5 "
    "--steps 1 --times uniform --metric-kimg 0",
}
NO_STEP = ("--total-kimg", "0.0001")  # built, looked at and saved
NETWORKS = {"train_gan.py": "G D G_ema", "pretrain_vae.py": "vae vae_ema D", "train_diffusion.py": "unet unet_ema"}
OPTIMIZER = {"train_gan.py": "opt_G", "pretrain_vae.py": "opt_vae", "train_diffusion.py": "opt"}


@dataclass
class Run:
    """A run of main(): its checkpoints, its log, its pictures, and what was asked of torch and the data on the way."""

    path: Path
    outcome: Outcome
    threads: list[int]  # that torch was told to use
    seeds: set  # that anything was drawn with
    cuts: set  # (start, stop) of the rows of batches that were asked for
    loaded: dict[int, dict] = field(default_factory=dict)

    def saved(self) -> list[int]:
        """Images seen at every committed checkpoint."""
        return sorted(int(p.stem) for p in (self.path / "checkpoints").glob("*.json"))

    def state(self, nimg: int) -> dict:
        """The state in a checkpoint; but for what the samples were found to look like, which is not trained on."""
        if nimg not in self.loaded:
            path = self.path / "checkpoints" / f"{nimg:012d}.pt"
            self.loaded[nimg] = torch.load(path, weights_only=True)
            counters = self.loaded[nimg]["counters"]
            seen = "best_diversity best_of best_figure best_nimg last_diversity looked_nimg ahead".split()
            seen += ["looks_since", "patience_from", "patience_total"]
            kept = {k: v for k, v in counters.items() if k not in seen and not k.startswith("verdict ")}
            self.loaded[nimg]["counters"] = kept
        return self.loaded[nimg]

    def last(self) -> dict:
        return self.state(self.saved()[-1])

    def rows(self) -> list[dict]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def seen(self, column: str) -> list[int]:
        """Images seen at the rows that have a column."""
        return [row["nimg"] for row in self.rows() if column in row]

    def pictures(self) -> list[str]:
        return sorted(p.name for p in (self.path / "samples").glob("[0-9]*.png"))

    def config(self) -> dict:
        return json.loads((self.path / "config.json").read_text())

    def about(self) -> dict:
        return read_weights(self.path / "weights.safetensors")[1]

    def attempts(self, event: str) -> list[dict]:
        lines = [json.loads(line) for line in (self.path / "attempts.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def shape(self, part: str, name: str) -> tuple:
        return tuple(self.state(0)[part][name].shape)

    def names(self, part: str, ending: str = "") -> list[str]:
        return [name for name in self.state(0)[part] if name.endswith(ending)]

    def rate(self, nimg: int, optimizer: str, key: str = "lr", group: int = 0) -> float:
        return self.state(nimg)[optimizer]["param_groups"][group][key]


def digest(value, into=None) -> str:
    """Of nested dicts, lists, tensors and plain values: equal only where every bit is."""
    h = into or hashlib.sha256()
    if isinstance(value, torch.Tensor):
        h.update(f"{value.dtype}{tuple(value.shape)}".encode())
        h.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            h.update(f"<{key}".encode())
            digest(value[key], h)
    elif isinstance(value, (list, tuple)):
        for part in value:
            h.update(b"[")
            digest(part, h)
    else:
        h.update(repr(value).encode())
    return h.hexdigest()


def parts(state: dict) -> dict[str, str]:
    """{part: digest}."""
    found = {}
    for name, value in state.items():
        if isinstance(value, dict) and "param_groups" in value:
            found[f"{name}.rates"], found[f"{name}.moments"] = value["param_groups"], value["state"]
        elif isinstance(value, dict) and "w_avg" in value:
            found[f"{name}.w_avg"] = value["w_avg"]
            found[name] = {k: v for k, v in value.items() if k != "w_avg"}
        else:
            found[name] = value
    return {name: digest(value) for name, value in found.items()}


def changed(a: dict, b: dict) -> set[str]:
    """Parts of two states that are not equal to the last bit."""
    a, b = parts(a), parts(b)
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


class Bench:
    """The runs of one script over one folder of slices. The same flags are run once."""

    def __init__(self, script: str, room: Path, more: str = ""):
        self.script, self.cls, self.room, self.folder = script, CONFIGS[script], room, room / script
        self.module = importlib.import_module(script.removesuffix(".py"))
        self.base = ["--data", str(room / "data"), *BASE[script].split(), *more.split()]
        self.known: dict[tuple, Run] = {}
        self.count = 0

    def run(
        self,
        *flags: str,
        to: Path | None = None,
        base: bool = True,
        light: bool = True,
        patch: Iterable = (),
        **env: str,
    ) -> Run:
        """main() with the base's flags and these. `to`: the run directory, which may be there already; `light`: without
        what is for people only and costs more than the training; `patch`: (object, name, value)."""
        self.count += 1
        path = to or self.folder / str(self.count)
        threads, seeds, cuts = [], set(), set()

        def noting(function, into: set, of: Callable):
            return lambda *a, **k: (into.add(of(*a, **k)), function(*a, **k))[1]

        patches = [
            (target, name, noting(getattr(target, name), seeds, of))
            for target, name, of in (
                (randomness, "seed_of", lambda seed, *_: seed), (batches, "flip_coins", lambda seed, *_: seed),
                (batches, "sample_order", lambda n, seed, *_: seed),
                (latents, "sample_order", lambda n, seed, *_: seed),
            )
        ]  # fmt: skip
        for cls in (batches.Batches, latents.LatentBatches):
            patches.append((cls, "rows", noting(cls.rows, cuts, lambda self, nimg, start, stop: (start, stop))))
        if light:
            board = SimpleNamespace(
                scalars=lambda *_: None, image=lambda *_: None, about=lambda *_: None, close=lambda: None
            )
            patches += [
                (upkeep, "plot_losses", lambda *_: None), (upkeep, "TensorBoard", lambda *_, **__: board),
                (self.module, "step_flops", lambda *_: defaultdict(float)), (os, "fsync", lambda _: None),
                (RunDir, "write_provenance", lambda *_, **__: None),
            ]  # fmt: skip
            if self.cls is VaeConfig:
                patches.append((self.module, "write_latents", lambda *_: None))
        with contextlib.ExitStack() as stack:
            for target, name, value in [*patches, (torch, "set_num_threads", threads.append), *patch]:
                stack.enter_context(mock.patch.object(target, name, value))
            argv = [*(self.base if base else []), *flags, "--run", str(path)]
            outcome = run_main(self.script, *argv, packs=self.room / "packs", tiny=False, **env)
        return Run(path, outcome, threads[:-1], seeds, cuts)  # the last number puts back what was

    def once(self, *flags: str) -> Run:
        """The run of these flags over the base's, which ends well."""
        if flags not in self.known:
            self.known[flags] = run = self.run(*flags)
            assert run.outcome.code == 0, run.outcome.said
        return self.known[flags]


def slices(folder: Path, shade: int = 0) -> None:
    """Class folders with given splits of grey noise, 40x36, as different from its mirror image as from any other; one
    file of train cannot be read."""
    for split, number in (("train", 18), ("test", 6), ("val", 5)):
        for i in range(number):
            noise = np.random.default_rng([shade, number, i]).integers(0, 255, (40, 36), np.uint8)
            name = folder / split / ("AD", "NC")[i % 2] / f"p{number}{i:02d}_1.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(name)
    (folder / "train" / "AD" / "p1899_1.png").write_bytes(b"no picture")


def scans(folder: Path) -> None:
    """Five slices of each of a few people."""
    for split, number in (("train", 4), ("test", 2), ("val", 2)):
        for i, z in itertools.product(range(number), range(5)):
            noise = np.random.default_rng([number, i, z]).integers(0, 255, (40, 36), np.uint8)
            name = folder / split / ("AD", "NC")[i % 2] / f"p{split}{i}_{z}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(name)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """A folder with two sets of slices and a VGG of few channels."""
    room = tmp_path_factory.mktemp("flags")
    slices(room / "data")
    slices(room / "other", shade=1)
    scans(room / "scans")
    (room / "moved.csv").write_text("file,split\np1803_1.png,test\n")
    ages = "".join(f"{p.name},{50 + k % 7}\n" for k, p in enumerate(sorted((room / "data").rglob("p*.png"))))
    (room / "ages.csv").write_text("file,age\n" + ages)
    torch.save(narrow(), room / "vgg.pth")
    return room


class Benches(dict):
    """{script: its bench}, made when it is first asked for."""

    def __init__(self, room: Path):
        self.room = room

    def __missing__(self, script: str) -> Bench:
        more = ""
        if script == "train_diffusion.py":
            for name, flags in (("vae", ()), ("other_vae", ("--seed", "7"))):
                (self.room / name).symlink_to(self["pretrain_vae.py"].once(*NO_STEP, *flags).path)
            more = f"--vae {self.room / 'vae'}"
        self[script] = Bench(script, self.room, more)
        return self[script]


@pytest.fixture(scope="module")
def benches(room) -> Benches:
    return Benches(room)


# --- what changes the result ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Row:
    """One field at another value, over the flags `base`. `changes`: {images seen: the parts that then differ from the
    base run, all of them}; those with a question mark may. `see(other, base)`: conditions of what more there is to see.
    `until`: images to train on, where that is more than `changes` says; 0 for networks that need only be built."""

    flags: str
    changes: dict[int, str] | None = None
    see: Callable[[Run, Run], tuple] = lambda other, base: ()
    base: str = ""
    until: int | None = None


def near(value: float, rel: float = 1e-5):
    return pytest.approx(value, rel=rel)


def kept_share(run: Run, network: str, nimg: int) -> float:
    """What a step left of the moving average's distance from the weights: the decay of that step. Without the mapping
    network, whose steps are lost in the rounding of its large weights."""
    average = f"{network}_ema"
    one, before, after = run.state(nimg)[network], run.state(nimg - 4)[average], run.state(nimg)[average]
    keys = [k for k in one if k != "w_avg" and not k.startswith("mapping")]
    left = torch.cat([(one[k].double() - after[k].double()).flatten() for k in keys])
    whole = torch.cat([(one[k].double() - before[k].double()).flatten() for k in keys])
    return float(left @ whole / (whole @ whole))


def moment_of(run: Run, nimg: int, optimizer: str, name: str = "exp_avg") -> float:
    """Norm of an optimizer's moments: after one step the first are the clipped gradient, times 1 - beta1."""
    states = run.state(nimg)[optimizer]["state"].values()
    return math.sqrt(sum(float(s[name].square().sum()) for s in states))


def steps_done(run: Run, nimg: int, optimizer: str) -> float:
    return float(run.state(nimg)[optimizer]["state"][0]["step"])


def p_of(run: Run, nimg: int) -> float:
    return run.state(nimg)["ada"]["p"]


def splits(run: Run) -> set[str]:
    """Whose slices the run has learnt from."""
    return set(json.loads((run.path / "data.json").read_text())["digests"])


def geometry(run: Run, name: str) -> int:
    return run.about()["geometry"][name]


def cosine(progress: float) -> float:
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))


def latent_side(run: Run) -> int:
    tensors, about = read_weights(run.path / "weights.safetensors")
    return loading.load_vae(tensors, about["config"]).encode(torch.zeros(1, 1, 32, 32))[0].shape[-1]


def averaged(network: str, extra: str = "") -> dict[str, list[Row]]:
    """The half-life and its ramp-up change the moving average alone."""
    only = {n: f"{network}_ema" for n in (4, 8)}
    return {
        "ema_kimg": [Row("--ema-kimg 0.005", only, lambda o, b: (
            kept_share(b, network, 8) == near(0.5 ** (4 / 20), 1e-3),
            kept_share(o, network, 8) == near(0.5 ** (4 / 5), 1e-3),
        ))],
        "ema_rampup": [Row("--ema-rampup 0.5", only, lambda o, b: (
            kept_share(o, network, 4) == near(0.5 ** (4 / 2), 1e-3),
            kept_share(o, network, 8) == near(0.5 ** (4 / 4), 1e-3),
        ))],
    }  # fmt: skip


def chosen(run: Run) -> dict:
    """What data.json says of the choices of the data."""
    return json.loads((run.path / "data.json").read_text()).get("choices", {})


def noted(flag: str, value: str) -> list[Row]:
    """Of volumes alone: pictures are as they were, and data.json says it."""
    see = lambda o, b: (chosen(o) == {flag: value}, chosen(b) == {})  # noqa: E731
    return [Row(f"--{flag} {value}", {4: ""}, see)]


def learnt_from(what: str, base: str = "") -> dict[str, list[Row]]:
    """Other slices, from the first step on."""
    return {
        "data": [Row("--data {room}/other", {0: "scale?", 4: f"{what} scale?"})],
        "split": [Row("--split test", {0: "scale?", 4: f"{what} scale?"}, lambda o, b: (
            splits(o) == {"test"}, splits(b) == {"train"},
        ))],
        **{flag: [Row(f"--{flag} {value}", {0: "scale?", 4: f"{what} scale?"}, lambda o, b, flag=flag: (
            set(chosen(o)) == {flag}, chosen(b) == {},
        ), base=under)] for flag, value, under in (
            ("include", "*[0-7]_1.png", ""), ("exclude", "*p1803*", ""), ("table", "{room}/moved.csv", ""),
            ("slices", "0:0.5", "--data {room}/scans"), ("range", "20:180", ""),
        )},
        **{flag: noted(flag, value) for flag, value in (("plane", "coronal"), ("spacing", "1.5"), ("volume", "1"))},
        "crop": [Row("--crop 24", {0: "", 4: what}, lambda o, b: (
            geometry(o, "crop") == 24, geometry(b, "crop") == 0,
        ), base=base)],
    }  # fmt: skip


def precise(changes: str, scaler: str) -> list[Row]:
    """The type that the networks run in; fp16 alone scales its losses."""
    return [
        Row("--precision bf16", {0: "", 4: changes}, lambda o, b: (
            o.attempts("start")[0]["precision"] == "bfloat16", b.attempts("start")[0]["precision"] == "float32",
        )),
        Row("--precision fp16", {0: scaler}, lambda o, b: (
            all(o.state(0)[name]["scale"] > 1 and not b.state(0)[name] for name in scaler.split()),
        )),
    ]  # fmt: skip


D_STEP = "D opt_D.moments ada?"  # D's step alone: G sees it in the next one
BOTH = "G G_ema opt_G.moments D opt_D.moments ada?"
GAN: dict[str, list[Row]] = {
    **learnt_from(D_STEP), **averaged("G"), "precision": precise(f"{BOTH} pl_mean G.w_avg? G_ema.w_avg?",
        "scaler_G scaler_D"),
    "hflip": [Row("--hflip", {0: "", 4: D_STEP})],
    "seed": [Row("--seed 5", {4: f"{BOTH} pl_mean G.w_avg G_ema.w_avg"},
        lambda o, b: (o.seeds == {5}, b.seeds == {0}))],
    "batch": [Row("--batch 8", see=lambda o, b: (
        o.saved() == [0, 8], o.cuts >= {(0, 8)}, b.cuts >= {(0, 4)}, not o.cuts & {(0, 4)},
    ), until=8)],
    # --- networks
    "resolution": [Row("--resolution 64", see=lambda o, b: (
        geometry(o, "resolution") == 64, geometry(b, "resolution") == 32,
        *(len(o.names(part)) > len(b.names(part)) for part in ("G", "D", "G_ema")),
    ), until=0)],
    "channels": [Row("--channels 3", see=lambda o, b: (
        o.shape("G", "to_rgb.0.weight")[0] == 3, b.shape("G", "to_rgb.0.weight")[0] == 1,
        o.shape("D", "from_rgb.weight")[1] == 3, b.shape("D", "from_rgb.weight")[1] == 1,
    ), until=0)],
    "conditional": [Row("--conditional", see=lambda o, b: (
        o.shape("G", "mapping.embedding") == (2, 8), not b.names("G", "embedding"),
        len(o.names("D", "embedding")) == 1, not b.names("D", "embedding"), o.about()["classes"] == ["AD", "NC"],
    ), until=0)],
    "condition": [Row("--condition age", see=lambda o, b: (
        o.config()["condition"] == "class,age", not o.names("G", "mapping.embedding"),
        b.shape("G", "mapping.embedding") == (2, 8), o.shape("G", "mapping.conditions.parts.0.weight") == (3, 4),
        o.shape("D", "conditions.parts.1.unknown") == (8,), not b.names("D", "reader.out.weight"),
        [c["name"] for c in o.about()["conditions"]] == ["class", "age"], not b.names("G", "unknown"),
        "conditions" not in b.about(),
    ), base="--conditional --table {room}/ages.csv", until=0)],
    "z_dim": [Row("--z-dim 6", see=lambda o, b: (
        o.shape("G", "mapping.layers.0.weight") == (8, 6), b.shape("G", "mapping.layers.0.weight") == (8, 8),
    ), until=0)],
    "w_dim": [Row("--w-dim 6", see=lambda o, b: (
        o.shape("G", "w_avg") == (6,), b.shape("G", "w_avg") == (8,), o.shape("G", "mapping.layers.1.weight") == (6, 6),
        o.shape("G", "to_rgb.0.affine.weight")[1] == 6,
    ), until=0)],
    "mapping_layers": [Row("--mapping-layers 3", see=lambda o, b: tuple(
        sum(".layers." in n for n in run.names(part, "weight") if n.startswith("mapping.")) == number
        for run, number in ((o, 3), (b, 2)) for part in ("G", "D", "G_ema")
    ), base="--conditional", until=0)],
    "channel_base": [Row("--channel-base 64", see=lambda o, b: (
        o.shape("D", "from_rgb.weight")[0] == 2, b.shape("D", "from_rgb.weight")[0] == 4,
        o.shape("G", "to_rgb.3.weight")[1] == 2, b.shape("G", "to_rgb.3.weight")[1] == 4, o.shape("G", "const")[1] == 8,
    ), until=0)],
    "channel_max": [Row("--channel-max 6", see=lambda o, b: (
        o.shape("G", "const")[1] == 6, b.shape("G", "const")[1] == 8, o.shape("D", "out.weight")[1] == 6,
        o.shape("D", "from_rgb.weight")[0] == 4,
    ), until=0)],
    "mbstd_group": [Row("--mbstd-group 4", {0: "", 4: f"{BOTH} pl_mean?"})],
    # --- objective
    "loss": [Row("--loss rpgan", {0: "D G G_ema", 4: f"{BOTH} G.w_avg G_ema.w_avg pl_mean?"},
        lambda o, b: (o.seen("r2") == [4], b.seen("r2") == []))],
    "gamma": [
        Row("--gamma 2", {0: "", 4: "D opt_D.moments"}),
        Row("--gamma 0", {4: "D opt_D.rates opt_D.moments ada?"}, lambda o, b: (
            o.seen("r1") == [], b.seen("r1") == [4], o.rate(4, "opt_D") == near(0.001),
            b.rate(4, "opt_D") == near(0.001 * 16 / 17),
        )),
    ],
    "r1_interval": [Row("--r1-interval 2", {4: "D opt_D.rates opt_D.moments"}, lambda o, b: (
        o.seen("r1") == [4, 12], b.seen("r1") == [4], o.rate(4, "opt_D") == near(0.001 * 2 / 3),
    ), until=16)],
    "pl_weight": [
        Row("--pl-weight 4", {0: "", 4: BOTH}),
        Row("--pl-weight 0", {4: f"{BOTH} opt_G.rates pl_mean"}, lambda o, b: (
            o.seen("path_length") == [], b.seen("path_length") == [4, 20], o.rate(4, "opt_G") == near(0.001),
        )),
    ],
    "pl_interval": [Row("--pl-interval 2", {4: f"{BOTH} opt_G.rates pl_mean"}, lambda o, b: (
        o.seen("path_length") == [4, 12], o.rate(4, "opt_G") == near(0.001 * 2 / 3),
        b.rate(4, "opt_G") == near(0.001 * 4 / 5),
    ), until=16)],
    "pl_decay": [Row("--pl-decay 0.04", {4: "pl_mean", 16: "pl_mean", 20: f"{BOTH} pl_mean"}, lambda o, b: (
        float(o.state(4)["pl_mean"]) == near(0.04 * o.rows()[1]["path_length"]),
        float(b.state(4)["pl_mean"]) == near(0.01 * b.rows()[1]["path_length"]), b.rows()[1]["path_length"] > 0,
    ))],
    "style_mixing": [Row("--style-mixing 0", {0: "", 4: f"{BOTH} pl_mean"})],
    "ada": [
        # Without augmentation there is no rounding of a shift to black and back either, which may be too little to see.
        Row("--ada off", {0: "", 4: f"{BOTH} pl_mean?"}, lambda o, b: (p_of(o, 16) == 0, p_of(b, 16) == near(0.4)),
        until=16),
        Row("--ada mri-flip", {4: "", 16: "", 20: f"{BOTH} pl_mean"}, base="--ada-kimg 0.02"),
    ],
    "ada_target": [Row("--ada-target 1", {12: "", 16: "ada"},
        lambda o, b: (p_of(o, 16) == 0, p_of(b, 16) == near(0.4)))],
    "ada_kimg": [Row("--ada-kimg 0.08", {12: "", 16: "ada"},
        lambda o, b: (p_of(o, 16) == near(0.2), p_of(b, 16) == near(0.4)))],
    "lr": [Row("--lr 0.002", {0: "opt_G.rates opt_D.rates", 4: f"{BOTH} pl_mean opt_G.rates opt_D.rates"},
        lambda o, b: (
        o.rate(4, "opt_G") == near(0.002 * 4 / 5), o.rate(4, "opt_D") == near(0.002 * 16 / 17),
    ))],
}  # fmt: skip


def rated(network: str, optimizer: str, both: str = "") -> dict[str, list[Row]]:
    """What VAE and diffusion share: a rate, decay of weights or limit of the gradient acts in its own step. `both`: the
    rates of the discriminator's optimizer, which stand in the first checkpoint."""
    step = f"{network} {network}_ema {optimizer}.rates"
    return {
        "lr": [Row("--lr 0.002", {0: f"{optimizer}.rates {both}", 4: f"{step} {both}"}, lambda o, b: (
            o.rate(4, optimizer) == near(0.001), b.rate(4, optimizer) == near(0.0005),
        ))],
        "warmup_kimg": [Row("--warmup-kimg 0.016", {0: "", 4: step}, lambda o, b: (
            o.rate(4, optimizer) == near(0.001 * 4 / 16), b.rate(4, optimizer) == near(0.001 * 4 / 8),
        ))],
        "decay_kimg": [Row("--decay-kimg 0.02", {4: "", 8: step}, lambda o, b: (
            o.rate(8, optimizer) == near(0.001 * cosine(4 / 20)), o.rate(12, optimizer) == near(0.001 * cosine(8 / 20)),
        ), until=12)],
        "weight_decay": [Row("--weight-decay 0.3", {0: f"{optimizer}.rates {both}", 4: f"{step} {both}"},
            lambda o, b: tuple(
            run.rate(4, name.split(".")[0], "weight_decay", group) == value
            for name in (optimizer, *both.split())
            for run, group, value in ((o, 0, 0.3), (b, 0, 0.01), (o, 1, 0), (b, 1, 0))
        ))],
        "clip": [Row("--clip 0.001", {0: "", 4: f"{network} {network}_ema {optimizer}.moments"}, lambda o, b: (
            moment_of(o, 4, optimizer) == near(0.1 * 0.001, 1e-3), moment_of(b, 4, optimizer) > 0.1 * 0.002,
            *([moment_of(o, 12, "opt_D") == near(0.5 * 0.001, 1e-3)] if both else []),
        ), until=12 if both else 4)],
    }  # fmt: skip


VAE_STEP = "vae vae_ema opt_vae.moments"
D_JOINS = "D opt_D.rates opt_D.moments gan_balance"
VAE: dict[str, list[Row]] = {
    **learnt_from(VAE_STEP), **averaged("vae"), **rated("vae", "opt_vae", "opt_D.rates"),
    "precision": precise(VAE_STEP, "scaler_vae scaler_D"),
    "hflip": [Row("--hflip", {0: "", 4: VAE_STEP})],
    "seed": [Row("--seed 5", {0: "vae vae_ema D", 4: f"{VAE_STEP} D"}, lambda o, b: (o.seeds == {5}, b.seeds == {0}))],
    "batch": [Row("--batch 8", see=lambda o, b: (
        o.saved() == [0, 8], o.cuts == {(0, 8)}, b.cuts == {(0, 4)}, steps_done(o, 8, "opt_vae") == 1,
    ), until=8)],
    # --- networks
    "resolution": [Row("--resolution 64", {0: ""}, lambda o, b: (
        geometry(o, "resolution") == 64, geometry(b, "resolution") == 32,
    ), until=0)],
    "channels": [Row("--channels 3", see=lambda o, b: (
        o.shape("vae", "encoder.0.weight")[1] == 3, b.shape("vae", "encoder.0.weight")[1] == 1,
        o.shape("D", "model.0.weight")[1] == 3, b.shape("D", "model.0.weight")[1] == 1,
    ), until=0)],
    "down": [Row("--down 2", see=lambda o, b: (latent_side(o) == 16, latent_side(b) == 8), until=0)],
    "latent_channels": [Row("--latent-channels 3", see=lambda o, b: (
        o.shape("vae", "decoder.0.weight")[1] == 3, b.shape("vae", "decoder.0.weight")[1] == 2,
    ), until=0)],
    "width": [Row("--width 8", see=lambda o, b: (
        o.shape("vae", "encoder.0.weight")[0] == 8, b.shape("vae", "encoder.0.weight")[0] == 4,
        o.shape("D", "model.0.weight")[0] == 4,
    ), until=0)],
    "num_res": [Row("--num-res 2", see=lambda o, b: (  # one more at each of three resolutions, on the way down and up
        len(o.names("vae", "norm1.weight")) - len(b.names("vae", "norm1.weight")) == 2 * 3,
    ), until=0)],
    "disc_width": [Row("--disc-width 8", see=lambda o, b: (
        o.shape("D", "model.0.weight")[0] == 8, b.shape("D", "model.0.weight")[0] == 4,
        o.shape("vae", "encoder.0.weight")[0] == 4,
    ), until=0)],
    # --- learning rate
    "decay": [Row("--decay plateau", {0: "", 4: "window", 8: "window vae vae_ema opt_vae.rates"}, lambda o, b: (
        o.rate(12, "opt_vae") == near(0.001), b.rate(12, "opt_vae") == near(0.001 * cosine(0.008)),
        float(o.state(12)["window"][1]) == 12,
    ), until=12)],
    "plateau_kimg": [Row("--plateau-kimg 0.008", {4: "", 8: "window counters"}, lambda o, b: (
        o.state(8)["window"].tolist() == [0, 0], o.state(8)["counters"]["best_window"] < math.inf,
        float(b.state(8)["window"][1]) == 8, b.state(8)["counters"]["best_window"] == math.inf,
    ), base="--decay plateau")],
    # --- objective
    "loss": [Row("--loss mse", {0: "", 4: VAE_STEP})],
    "kl_weight": [Row("--kl-weight 0.01", {0: "", 4: VAE_STEP})],
    "structure_weight": [
        Row("--structure-weight 0.2", {0: "", 4: VAE_STEP}),
        Row("--structure-weight 0", {4: VAE_STEP}, lambda o, b: (
            o.rows()[1]["loss_structure"] == 0, b.rows()[1]["loss_structure"] > 0,
        )),
    ],
    "perceptual_file": [Row("--perceptual-file {room}/vgg.pth", {0: "", 4: VAE_STEP}, lambda o, b: (
        o.seen("loss_perceptual") == [4, 8], b.seen("loss_perceptual") == [],
    ), until=8)],
    "perceptual_weight": [Row("--perceptual-weight 0.7", {0: "", 4: VAE_STEP},
    base="--perceptual-file {room}/vgg.pth")],
    "gan_weight": [
        # The balance starts at 0, so the first step with a discriminator only measures.
        Row("--gan-weight 1", {8: "", 12: "", 16: VAE_STEP}),
        Row("--gan-weight 0", {8: "", 12: D_JOINS}, lambda o, b: (
            o.seen("loss_D") == [], changed(o.state(0), o.state(12)).isdisjoint(D_JOINS.split()),
        )),
    ],
    "gan_start_kimg": [Row("--gan-start-kimg 0.004", {4: "", 8: D_JOINS}, lambda o, b: (
        o.seen("loss_D") == [8, 12], b.seen("loss_D") == [12, 16, 20],
    ), until=12)],
}  # fmt: skip

UNET_STEP = "unet unet_ema opt.moments"
PIXELS, FAST = "--space pixel --vae=", "--sampler ddim --times fast-uniform"
DIFFUSION: dict[str, list[Row]] = {
    **learnt_from(UNET_STEP, PIXELS), **averaged("unet"), **rated("unet", "opt"),
    "precision": precise(UNET_STEP, "scaler"),
    "seed": [Row("--seed 5", {0: "unet unet_ema", 4: UNET_STEP}, lambda o, b: (o.seeds == {5}, b.seeds == {0}))],
    "batch": [Row("--batch 8", see=lambda o, b: (
        o.saved() == [0, 8], o.cuts == {(0, 8)}, b.cuts == {(0, 4)}, steps_done(o, 8, "opt") == 1,
    ), until=8)],
    # --- what it runs on
    "resolution": [Row("--resolution 64", see=lambda o, b: (
        o.about()["shape"] == [1, 64, 64], b.about()["shape"] == [1, 32, 32],
    ), base=PIXELS, until=0)],
    "channels": [Row("--channels 3", see=lambda o, b: (
        o.about()["shape"] == [3, 32, 32], b.about()["shape"] == [1, 32, 32],
        o.shape("unet", "conv_out.weight")[0] == 3,
    ), base=PIXELS, until=0)],
    "space": [Row(PIXELS, see=lambda o, b: (
        o.about()["shape"] == [1, 32, 32], b.about()["shape"] == [2, 8, 8], o.about()["vae"] is None,
        b.about()["vae"]["latent_channels"] == 2, not (o.path / "vae.safetensors").exists(),
    ), until=0)],
    "vae": [Row("--vae {room}/other_vae", {0: "scale", 4: f"{UNET_STEP} scale"}, lambda o, b: tuple(
        (run.path / "vae.safetensors").read_bytes() == Path(run.config()["vae"], "weights.safetensors").read_bytes()
        for run in (o, b)
    ))],
    "condition": [Row("--condition age", see=lambda o, b: (
        not o.names("unet", "embed_class.weight"), b.shape("unet", "embed_class.weight")[0] == 3,
        o.shape("unet", "conditions.parts.0.weight")[0] == 3, o.config()["condition"] == "class,age",
    ), base="--table {room}/ages.csv", until=0)],
    "conditional": [Row("--no-conditional", see=lambda o, b: (
        not o.names("unet", "embed_class.weight"), b.shape("unet", "embed_class.weight")[0] == 3,
        b.about()["classes"] == ["AD", "NC"],
    ), until=0)],
    # --- network; its last layers start at 0, so what is inside it is seen from the second step on
    "widths": [Row("--widths 8,24", see=lambda o, b: (
        o.shape("unet", "middle.0.norm1.weight") == (24,), b.shape("unet", "middle.0.norm1.weight") == (16,),
        o.shape("unet", "norm_out.weight") == (8,),
    ), until=0)],
    "num_res": [Row("--num-res 2", see=lambda o, b: (  # one more at each of two resolutions, on the way down and up
        len(o.names("unet", "norm1.weight")) - len(b.names("unet", "norm1.weight")) == 2 * 2,
    ), until=0)],
    "attention": [Row("--attention 8,4", see=lambda o, b: (
        "down.0.attentions.0.qkv.weight" in o.names("unet"), "down.0.attentions.0.qkv.weight" not in b.names("unet"),
        "down.1.attentions.0.qkv.weight" in b.names("unet"), "down.1.attentions.0.qkv.weight" in o.names("unet"),
    ), until=0)],
    "head_dim": [Row("--head-dim 4", {0: "", 4: "", 8: UNET_STEP})],
    "dropout": [Row("--dropout 0.5", {4: "", 8: UNET_STEP})],
    "class_dropout": [Row("--class-dropout 0", {4: "", 8: UNET_STEP})],
    # --- diffusion
    "schedule": [Row("--schedule cosine", {0: "", 4: UNET_STEP})],
    "target": [Row("--target v", {0: "", 4: UNET_STEP})],
    "times": [
        Row("--times logit-normal", {0: "", 4: UNET_STEP}),
        Row("--times fast-nonuniform", {0: "", 4: UNET_STEP}, base=FAST),
    ],
    "fast_steps": [Row("--fast-steps 5", {0: "", 4: UNET_STEP}, base=FAST)],
    "min_snr_gamma": [Row("--min-snr-gamma 1", {0: "", 4: UNET_STEP})],
}  # fmt: skip


# --- what every flag that is free does instead ------------------------------------------------------------------------
# Several at once, as they have nothing to do with each other: none may change the result, so all together may not.
OBSERVED = "--log-kimg 0.01 --sample-kimg 0.016 --checkpoint-kimg 0.007 --threads 2 --max-bad 0.5".split()
ALSO = {
    "train_gan.py": [],
    "pretrain_vae.py": ["--val-split", "none"],
    "train_diffusion.py": "--val-split none --sampler heun --steps 3".split(),
}


def observed(bench: Bench) -> Run:
    run = bench.once(*OBSERVED, *ALSO[bench.script])
    assert_same_result(run, bench.once())
    return run


def assert_same_result(run: Run, base: Run) -> None:
    """The last checkpoint to the last bit, and the weights where the base has no later ones."""
    assert run.outcome.code == 0, run.outcome.said
    nimg = run.saved()[-1]
    assert not changed(run.state(nimg), base.state(nimg)) - ({"averages"} if nimg < base.saved()[-1] else set())
    if nimg == base.saved()[-1]:
        assert (run.path / "weights.safetensors").read_bytes() == (base.path / "weights.safetensors").read_bytes()


def short(nimg: int) -> tuple[str, str]:
    return "--total-kimg", str(nimg / 1000)


def name_of(run: Run) -> str:
    """The default name of a run with this one's config."""
    cls = next(c for c in CONFIGS.values() if {f.name for f in fields(c)} == set(run.config()))
    return parsing.default_name(parsing.from_dict(cls, run.config()))


def see_rows(bench: Bench) -> None:
    assert [row["nimg"] for row in observed(bench).rows()] == [0, 12, 16, 20]  # 16: a row belongs to each picture
    assert [row["nimg"] for row in bench.once().rows()] == [0, 4, 8, 12, 16, 20]


def see_pictures(bench: Bench) -> None:
    assert observed(bench).pictures() == ["00000.000.png", "00000.016.png", "00000.020.png"]
    assert bench.once().pictures() == ["00000.000.png", "00000.020.png"]


def see_checkpoints(bench: Bench) -> None:
    assert observed(bench).saved() == [0, 8, 16, 20] and bench.once().saved() == [0, 4, 8, 12, 16, 20]


def see_minutes(bench: Bench) -> None:
    """Each step takes a minute by the clock that the loop reads."""

    def saved(*flags: str) -> list[int]:
        clock, step_done = [1000.0], Record.step_done

        def tick(self, *args, **kwargs):
            clock[0] += 60
            return step_done(self, *args, **kwargs)

        patch = [(upkeep, "time", SimpleNamespace(monotonic=lambda: clock[0])), (Record, "step_done", tick)]
        run = bench.run("--checkpoint-kimg", "0", "--checkpoint-minutes", *flags, patch=patch)
        assert_same_result(run, bench.once())
        return run.saved()

    assert saved("1.5") == [0, 8, 16, 20]  # after two minutes, then two minutes after that
    assert saved("0", *short(8)) == [0, 8]  # never by the clock


def see_kept(bench: Bench) -> None:
    for keep, left in (("2", [8, 12]), ("1", [12])):
        run = bench.once("--keep", keep, *short(12))
        assert run.saved() == left
        assert_same_result(run, bench.once())


def see_device(bench: Bench) -> None:
    """A GPU that was asked for, or that Slurm gave, and that is not there is never a CPU run, unless --device cpu says
    so. What asks for one is of that command alone; --device cpu is of the run."""
    given = dict(SLURM_JOB_GPUS="0")
    for flags, env in ((("--device", "cuda"), {}), ((), given)):
        run = bench.run(*NO_STEP, *flags, **env)
        assert (
            run.outcome.code == 75 and "no usable GPU on node" in run.outcome.said and not (run.path / "DONE").exists()
        )
        assert run.config()["device"] == "auto"
    run = bench.run(*NO_STEP, "--device", "cpu", **given)
    assert run.outcome.code == 0 and run.config()["device"] == "cpu"
    assert_same_result(run, bench.once(*NO_STEP))


def see_compile(bench: Bench) -> None:
    """What is compiled is what trains."""
    assert "--compile" not in bench.once().outcome.said
    calls: list[int] = []

    def compiled(function, dynamic):
        assert dynamic is False
        place = len(calls)
        calls.append(0)

        def call(*args, **kwargs):
            calls[place] += 1
            return function(*args, **kwargs)

        return call

    patch = [(bench.module, "compiles", lambda asked, *_: asked), (torch, "compile", compiled)]
    assert_same_result(bench.run("--compile", *short(8), patch=patch), bench.once())
    # Two steps: G's synthesis and D in G's and in D's step each; one network, once.
    assert calls == {"train_gan.py": [4, 4]}.get(bench.script, [2])
    calls.clear()
    bench.run(*NO_STEP, patch=patch)
    assert calls == []


def see_threads(bench: Bench) -> None:
    for run, number in ((observed(bench), 2), (bench.once(), 1)):
        assert set(run.threads) == {number} and run.attempts("start")[0]["threads"] == number


def see_max_bad(bench: Bench) -> None:
    """One of nineteen files of train is no picture: of so few one may be bad, unless none may."""
    observed(bench)
    refused = bench.run("--max-bad", "0")
    assert refused.outcome.code == 78 and "1 of 19 files" in refused.outcome.err
    assert not (refused.path / "metrics.jsonl").exists()


def see_accumulate(bench: Bench) -> None:
    """Micro-batches of half the size; the result stays the same but for rounding."""
    under = ("--clip", "1000", *short(12)) if bench.cls is VaeConfig else ()  # a gradient that is cut off tells no size
    run, base = bench.once(*under, "--accumulate", "2", *short(12)), bench.once(*under)
    trained = [{cut for cut in r.cuts if cut[1] <= 4} for r in (run, base)]  # not the reals beside the GAN's samples
    assert trained == [{(0, 2), (2, 4)}, {(0, 4)}]
    for a, b in zip(run.rows()[:3], base.rows()[:3], strict=True):  # later, Adam has blown rounding up
        assert set(a) == set(b)
        for key in set(a) - TIMING:
            assert a[key] == pytest.approx(b[key], rel=5e-3, abs=1e-4), (a["nimg"], key)
    # Adam forgets how large a gradient is; its moments tell.
    for name in [name for name in base.state(4) if name.startswith("opt")]:
        for nimg in (4, 12):
            for moment in ("exp_avg", "exp_avg_sq"):
                a, b = (moment_of(r, nimg, name, moment) for r in (run, base))
                assert a == pytest.approx(b, rel=0.05, abs=1e-12), (nimg, name, moment)
    assert name_of(run) == name_of(base)


def see_held_out(bench: Bench) -> None:
    """A relativistic loss steers ADA by held-out slices, and without them lets it rise to 0.3. A run that has begun
    keeps to what it was steered by."""
    runs = {v: bench.once("--loss", "rpgan", *short(16), "--val-split", v) for v in ("auto", "none")}
    assert (p_of(runs["auto"], 16), p_of(runs["none"], 16)) == (near(0.4), near(0.3))
    assert (runs["auto"].seen("logits_held"), runs["none"].seen("logits_held")) == ([16], [])
    digests = [json.loads((run.path / "data.json").read_text())["digests"]["held out"] for run in runs.values()]
    assert digests[1] == "none" != digests[0]


def see_val_split(bench: Bench) -> None:
    """auto is val, where the data have it; the figures of the others are of other slices, and none has those of
    train."""
    figure = {"pretrain_vae.py": "l1", "train_diffusion.py": "loss"}[bench.script]
    auto = bench.once()
    assert auto.seen(f"val_{figure}") == [0, 20] and not auto.seen(f"train_{figure}")
    assert not observed(bench).seen(f"val_{figure}") and observed(bench).seen(f"train_{figure}") == [0, 16, 20]
    values = {split: bench.once(*NO_STEP, "--val-split", split).rows()[0][f"val_{figure}"] for split in ("val", "test")}
    assert values["val"] == auto.rows()[0][f"val_{figure}"] != values["test"]


@contextlib.contextmanager
def few_slices_do():
    """Figures of the few slices of these tests."""
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (yardstick, "MIN_HELDOUT", 5),
            (yardstick, "FEWEST", 18),
            (encoder, "FEWEST_STEPS", 2),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(mock.patch.object(quality, "manifold_figures", lambda *_: dict.fromkeys(REACH, 0.5)))
        yield


REACH = ("precision", "recall", "coverage")


class Shades(torch.nn.Module):
    """Feature weights that somebody has: mean and deviation of a slice."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1) / 255.0
        return torch.stack([x.mean(1), x.std(1)], 1)


def see_metrics(bench: Bench) -> None:
    """Figures of samples at these ticks and at the end, and the best weights by them; the run is the same."""
    with few_slices_do():
        run = bench.once("--metric-kimg", "0.008")
    assert_same_result(run, bench.once())
    assert run.seen("kid") == run.seen("recall_train") == [8, 16, 20] and not bench.once().seen("kid")
    assert run.seen("best_kid") == [8, 12, 16, 20] and (run.path / "weights-best.safetensors").exists()
    assert not (bench.once().path / "weights-best.safetensors").exists()


def see_features(bench: Bench) -> None:
    """Other features are other units; a file that holds none is refused before anything is packed."""
    refused = bench.run("--feature-weights", str(bench.room / "vgg.pth"), "--metric-kimg", "0.008")
    assert refused.outcome.code == 78 and "--feature-weights" in refused.outcome.err
    assert not (refused.path / "metrics.jsonl").exists()
    asked: list[str] = []
    patch = [(yardstick, "given_features", lambda path: (asked.append(path), (Shades(), path))[1])]
    with few_slices_do():
        run = bench.run("--feature-weights", "mine.pth", "--metric-kimg", "0.008", *short(8), patch=patch)
        own = bench.once("--metric-kimg", "0.008")
    assert_same_result(run, bench.once())
    assert asked == [str(Path("mine.pth").absolute())]  # a job may run in another folder
    assert run.rows()[2]["kid"] != own.rows()[2]["kid"]


def see_measured_split(bench: Bench) -> None:
    """auto is val, where the data have it; with none the training slices are the measure."""
    with few_slices_do():
        found = {split: bench.once("--metric-kimg", "0.004", *short(4), "--val-split", split).rows()[-1]["kid_train"]
                 for split in ("auto", "val", "test", "none")}  # fmt: skip
    assert found["auto"] == found["val"] and len(set(found.values())) == 3


def see_kept_weights(bench: Bench) -> None:
    """Evenly spaced, before the last; each is that of its moment."""
    run = bench.once("--keep-weights", "2")
    assert_same_result(run, bench.once())
    kept = {path.name: read_weights(path)[1]["nimg"] for path in run.path.glob("weights-0*.safetensors")}
    assert kept == {"weights-0.008.safetensors": 8, "weights-0.016.safetensors": 16}
    assert not list(bench.once().path.glob("weights-0*.safetensors"))


def see_end(bench: Bench) -> None:
    """A third of the run without anything better ends it, as done; a longer run goes on from there."""
    with few_slices_do():
        figures = iter([3.0, 4.0, 4.5, 5.0, 1.0, *[2.0] * 9])
        job = CONFIGS[bench.script]
        more = ("--gan-weight", "0") if job is VaeConfig else ("--metric-kimg", "0.004")  # D would start a new best
        name = "val_l1" if job is VaeConfig else "kid"
        sampled = ("--sample-kimg", "0.004")
        real = upkeep.best.look

        def look(counters, found, of, nimg):
            real(counters, found | {name: next(figures)} if nimg else found, of, nimg)

        patch = [(upkeep.best, "look", look)]
        run = bench.run("--stop-when-worse", *more, *sampled, patch=patch)
        assert run.outcome.code == 0 and (run.path / "DONE").exists()
        assert "The run ends here: --stop-when-worse" in run.outcome.said
        assert run.saved()[-1] == 16 and "nothing better than" in run.attempts("end")[-1]["reason"]
        again = bench.run("--stop-when-worse", *more, *sampled, to=run.path)
        assert again.outcome.code == 0 and "is done" in again.outcome.out
        longer = bench.run("--stop-when-worse", *more, *sampled, *short(28), to=run.path, patch=patch)
        assert longer.outcome.code == 0 and run.saved()[-1] == 28
        figures = iter(range(99, 0, -1))  # as long as it gets better the flag changes nothing
        assert_same_result(bench.run("--stop-when-worse", *more, *sampled, patch=patch), bench.once(*more, *sampled))


def see_sampler(bench: Bench) -> None:
    """Of a network that has learnt a little, fast: near zero all that draw no fresh noise go the same way."""
    observed(bench)
    runs = [
        bench.once("--lr", "0.1", "--steps", "3", "--sampler", sampler, *short(8))
        for sampler in ("midpoint", "ddim", "ancestral")
    ]
    assert len({(run.path / "samples" / "00000.008.png").read_bytes() for run in runs}) == 3
    for run in runs[1:]:
        assert_same_result(run, runs[0])


def see_steps(bench: Bench) -> None:
    observed(bench)
    calls, sample = [], samplers.sample

    def counting(denoise, *args, **kwargs):
        return sample(lambda *a: (calls.append(1), denoise(*a))[1], *args, **kwargs)

    for steps in (2, 6):
        calls.clear()
        bench.run("--steps", str(steps), *NO_STEP, patch=[(samplers, "sample", counting)])
        assert len(calls) == 3 * steps  # one picture, in three chunks


def see_total(bench: Bench) -> None:
    """A longer run is the shorter one gone on with, by --run and --total-kimg alone."""
    run = bench.run("--total-kimg", "0.012")
    assert run.saved() == [0, 4, 8, 12] and (run.path / "DONE").exists()
    again = bench.run("--total-kimg", "0.012", to=run.path)
    assert again.outcome.code == 0 and "is done" in again.outcome.out and len(run.attempts("start")) == 1
    longer = bench.run("--total-kimg", "0.02", to=run.path, base=False)
    assert_same_result(longer, bench.once())
    assert run.saved() == bench.once().saved() and longer.attempts("start")[1]["nimg"] == 12


def see_override(bench: Bench) -> None:
    """Other flags are refused, go on with --override, and are refused again without it: it is not remembered."""
    run, optimizer = bench.run("--total-kimg", "0.004"), OPTIMIZER[bench.script]
    other = bench.run("--total-kimg", "0.008", "--lr", "0.0017", to=run.path, base=False)
    assert other.outcome.code == 78 and "--lr 0.001 -> 0.0017" in other.outcome.err
    assert run.saved() == [0, 4] and run.config()["lr"] == 0.001
    other = bench.run("--total-kimg", "0.008", "--lr", "0.0017", "--override", to=run.path, base=False)
    assert other.outcome.code == 0 and run.saved() == [0, 4, 8] and run.config()["lr"] == 0.0017
    assert run.rate(8, optimizer) == near(0.0017 * (4 / 5 if optimizer == "opt_G" else cosine(0.004)))
    assert [line["changed"] for line in run.attempts("override")] == ["--lr 0.001 -> 0.0017"]
    other = bench.run("--total-kimg", "0.012", "--lr", "0.0019", to=run.path, base=False)
    assert other.outcome.code == 78 and run.saved() == [0, 4, 8]


def see_init_from(bench: Bench) -> None:
    """The other run's networks, with optimizers and all else of a fresh run; a run that has begun needs it no more."""
    source = bench.once()
    run = bench.run(*NO_STEP, "--init-from", str(source.path))
    assert run.outcome.code == 0, run.outcome.said
    begun, trained, fresh = run.last(), source.state(TOTAL), source.state(0)
    networks = {part for part in parts(begun) if part.split(".")[0] in NETWORKS[bench.script].split()}
    assert changed(begun, trained).isdisjoint(networks) and changed(begun, fresh) == networks | {"counters"}
    assert run.config()["init_from"] == str(source.path) and name_of(run) != name_of(source)
    # The ramp-up of the moving average goes on: half-life 0.5 x 24 images, where a fresh run would have 0.5 x 4.
    warm = bench.once("--init-from", str(source.path), "--ema-rampup", "0.5", *short(4))
    network = NETWORKS[bench.script].split()[0]
    assert warm.state(4)["counters"]["warm"] == TOTAL == begun["counters"]["warm"] and "warm" not in fresh["counters"]
    assert kept_share(warm, network, 4) == near(0.5 ** (4 / 12), 1e-3)
    nowhere = str(bench.folder / "nowhere")
    gone = bench.run("--init-from", nowhere, "--total-kimg", "0.004", to=run.path)
    assert gone.outcome.code == 0 and run.saved() == [0, 4], gone.outcome.said
    refused = bench.run("--init-from", nowhere)
    assert refused.outcome.code == 78 and "--init-from" in refused.outcome.err and not refused.path.exists()


def see_dry_run(bench: Bench) -> None:
    """Nothing is made; what a run would refuse is refused: the slices, the flags of the run, and how much memory it
    takes."""
    base = bench.once()
    run = bench.run("--dry-run")
    assert run.outcome.code == 0 and not run.path.exists()
    assert json.loads(run.outcome.out) == base.config() | {"dry_run": True, "run": str(run.path)}
    assert "19 slices (AD 10, NC 9)" in run.outcome.err and "split train" in run.outcome.err
    other = bench.run("--dry-run", "--split", "test")
    assert "6 slices (AD 3, NC 3)" in other.outcome.err and "split test" in other.outcome.err
    for flags in (("--crop", "99"), ("--data", str(bench.room / "nowhere")), ("--split", "half")):
        refused = bench.run("--dry-run", *flags)
        assert refused.outcome.code in (78, 2) and flags[0] in refused.outcome.said and not refused.path.exists()
    before = base.config()
    refused = bench.run("--dry-run", "--lr", "0.5", to=base.path)
    assert refused.outcome.code == 78 and "--lr 0.001 -> 0.5" in refused.outcome.err and base.config() == before


def see_toml(bench: Bench) -> None:
    """A file that means the same run, and no run."""
    written = bench.run("--toml")
    assert written.outcome.code == 0 and not written.path.exists()
    values = tomllib.loads(written.outcome.out)
    assert "run" not in values and values["batch"] == bench.once().config()["batch"]
    assert set(values) == set(bench.once().config()) - {"run", "dry_run", "toml", "override"}


def see_run(bench: Bench) -> None:
    """Where a run lies does not matter to it; without a name it is called after what changes its result."""
    base = bench.once()
    run = bench.run(*short(4), to=bench.folder / "else where" / "run")
    assert run.config() == base.config() | {"run": str(run.path), "total_kimg": 0.004}
    kept = {k: v for k, v in run.config().items() if k not in FREE}
    about = run.about()
    assert (about["job"], about["nimg"], about["config"]) == (JOB_NAME[bench.cls], 4, kept)
    assert_same_result(run, base)
    unnamed = run_main(bench.script, *bench.base, "--dry-run", packs=bench.room / "packs", tiny=False)
    assert json.loads(unnamed.out)["run"] == str(specs.ROOT / "runs" / name_of(run))


def see_preset(bench: Bench) -> None:
    """Another preset with every flag given is the same run; with none given it is the preset's own values."""
    config, other = bench.once().config(), kinds.JOBS[JOB_NAME[bench.cls]].default_preset
    flags = [
        f"--{'no-' * (value is False)}{name.replace('_', '-')}" + f"={value}" * (not isinstance(value, bool))
        for name, value in config.items()
        if name not in ("run", "preset")
    ]
    run = bench.run("--preset", other, *flags, *short(4), base=False)
    assert run.config() == config | {"preset": other, "run": str(run.path), "total_kimg": 0.004}
    assert_same_result(run, bench.once())
    bare = ["--space", "pixel"] if bench.cls is DiffusionConfig else []  # which needs no VAE
    ranks = dict(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2")
    dry = bench.run("--preset", other, "--data", "phantom:9", "--dry-run", *bare, base=False, **ranks)
    expected = DEFAULTS[bench.cls] | PRESETS[bench.cls][other] | {"preset": other, "data": "phantom:9"}
    differ = {k for k, v in json.loads(dry.outcome.out).items() if v != expected[k] != AUTO}
    assert differ == {"run", "dry_run"} | ({"space"} if bare else set())
    config = parsing.from_dict(bench.cls, json.loads(dry.outcome.out))
    memory = kinds.JOBS[JOB_NAME[bench.cls]].memory_gb(config, 2)
    assert memory > 1 and f"about {memory:.1f} GB per GPU at --batch {config.batch}, 2 GPU" in dry.outcome.err


SEE: dict[str, Callable[[Bench], None]] = dict(
    run=see_run, preset=see_preset, max_bad=see_max_bad, dry_run=see_dry_run, toml=see_toml, override=see_override,
    init_from=see_init_from,
    accumulate=see_accumulate, total_kimg=see_total, device=see_device, compile=see_compile, threads=see_threads,
    keep_weights=see_kept_weights, stop_when_worse=see_end, log_kimg=see_rows,
    sample_kimg=see_pictures, checkpoint_minutes=see_minutes, checkpoint_kimg=see_checkpoints, keep=see_kept,
)  # fmt: skip
SEE_SAMPLES = dict(metric_kimg=see_metrics, feature_weights=see_features)
TABLES: dict[str, dict] = {
    "train_gan.py": GAN | SEE | SEE_SAMPLES | dict(val_split=see_measured_split),
    "pretrain_vae.py": VAE | SEE | dict(val_split=see_val_split),
    "train_diffusion.py": DIFFUSION
    | SEE
    | SEE_SAMPLES
    | dict(val_split=see_val_split, sampler=see_sampler, steps=see_steps),
}


# --- the tests --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("script", CONFIGS)
def test_every_field_has_a_row(script):
    table = TABLES[script]
    assert set(table) == {f.name for f in fields(CONFIGS[script])}
    assert {name for name, entry in table.items() if callable(entry)} == FREE & set(table)


ENTRIES = [(script, name, i) for script, table in TABLES.items() for name, entry in table.items()
           for i in range(1 if callable(entry) else len(entry))]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "name", "number"), ENTRIES, ids=[f"{JOB_NAME[CONFIGS[s]]}-{n}-{i}" for s, n, i in ENTRIES]
)
def test_every_flag_has_an_effect(benches, script, name, number):
    bench, entry = benches[script], TABLES[script][name]
    if callable(entry):
        entry(bench)
        return
    row = entry[number]
    until = max(row.changes) if row.until is None else row.until
    length, under = short(until) if until else NO_STEP, row.base.format(room=bench.room).split()
    base = bench.once(*under, *(length if under else ()))
    other = bench.once(*under, *length, *row.flags.format(room=bench.room).split())
    differ = {k for k, v in other.config().items() if v != base.config()[k]} - {"run", "total_kimg"}
    given = {flag.removeprefix("--").removeprefix("no-").split("=")[0].replace("-", "_") for flag in row.flags.split()}
    assert name in differ <= given, "a row is about its own flag"
    for nimg, expected in (row.changes or {}).items():
        found = changed(other.state(nimg), base.state(nimg))
        must, may = ({p.rstrip("?") for p in expected.split() if p.endswith("?") == maybe} for maybe in (False, True))
        assert must <= found <= must | may, (nimg, found ^ must)
    for i, condition in enumerate(row.see(other, base)):
        assert condition, f"condition {i + 1}"
    assert any((row.changes or {}).values()) or row.see(other, base), "a row sees an effect"


@pytest.mark.parametrize("script", CONFIGS)
def test_what_is_for_people_alone_changes_nothing(benches, script):
    """Loss plots, TensorBoard and the count of FLOPs, without which the other runs of this file are made."""
    run = benches[script].run(light=False)
    assert_same_result(run, benches[script].once())
    assert (run.path / "plots" / "losses.png").exists() and any((run.path / "tensorboard").iterdir())


def test_of_a_run_that_collapsed_the_last_healthy_checkpoint_stays(benches):
    """--keep counts from the newest back; the last from before the collapse is kept besides."""

    def judge(c, row, counters, nimg, say):
        counters["healthy"] = nimg <= 8

    patch = [(judges, "judge", judge)]
    run = benches["train_gan.py"].run("--keep", "1", "--sample-kimg", "0.004", *short(16), patch=patch)
    assert run.outcome.code == 0 and run.saved() == [8, 16]


@pytest.mark.parametrize("script", CONFIGS)
@pytest.mark.parametrize(("flags", "code", "says"), [
    (("--lr", "0"), 78, "--lr"), (("--batch", "6", "--accumulate", "4"), 78, "--batch 6"),
    (("--preset", "adni999"), 78, "quickstart"),
    (("--data", "nowhere"), 78, "nowhere"), (("--lr", "fast"), 2, "--lr"), (("--split", "half"), 2, "--split"),
    (("--bach", "8"), 2, "--batch"),
    (("--run",), 2, "--run"),
])  # fmt: skip
def test_a_wrong_flag_is_named_and_nothing_is_made(benches, script, flags, code, says):
    """Code 78: a value that cannot work. Code 2: no such flag or choice."""
    bench = benches[script]
    folder = bench.folder / f"wrong {says}"
    outcome = run_main(script, *bench.base, "--run", str(folder), *flags, packs=bench.room / "packs", tiny=False)
    assert outcome.code == code and says in outcome.said and "Traceback" not in outcome.said
    assert code == 2 or len([line for line in outcome.err.splitlines() if line.startswith("error: ")]) == 1
    assert says == "nowhere" or not folder.exists()


@pytest.mark.parametrize("script", ["train_gan.py", "train_diffusion.py"])
@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_without_classes_there_is_nothing_to_condition_on(benches, script, flags):
    bench = benches[script]
    one = ("--data", str(bench.room / "data" / "val" / "AD"), "--conditional", *flags)
    refused = bench.run(*one)
    assert refused.outcome.code == 78 and "--conditional" in refused.outcome.err
    assert not (refused.path / "config.json").exists() or not (refused.path / "metrics.jsonl").exists()
    assert bench.run(*one, "--no-conditional", "--dry-run").outcome.code == 0


def test_a_perceptual_file_that_is_no_vgg_is_refused_before_a_run(benches, room):
    other = room / "data" / "train" / "AD" / "p1899_1.png"
    refused = benches["pretrain_vae.py"].run("--dry-run", "--perceptual-file", str(other))
    assert refused.outcome.code == 78 and "cannot be read as weights" in refused.outcome.err
