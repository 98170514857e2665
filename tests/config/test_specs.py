"""How a config comes to be: presets, stored configs, paths; and what is refused, at the last good and the first bad
value."""

from __future__ import annotations

import itertools
import json
import math
import re
import typing
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pretrain_vae
import train_diffusion
import train_gan
from jobs.cluster import plan
from jobs.cluster.sites import choose_site
from jobs.config import kinds, parsing, presets, rules, sizes, specs
from jobs.config.cards import Card, card_of
from jobs.config.recipe import derived
from jobs.config.specs import ConfigError, DiffusionConfig, GanConfig, VaeConfig
from jobs.run.rundir import RunDir
from models import names

CONFIGS = (GanConfig, VaeConfig, DiffusionConfig)
EACH = pytest.mark.parametrize("cls", CONFIGS)
JOB = {job.config: job for job in kinds.JOBS.values()}


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def parsed(cls, *flags: str):
    return parsing.parse_config(cls, ["--preset", "quickstart", *flags])


def refusal(config, world: int | None = None) -> str:
    """The one line with which a config is refused, '' where it is not."""
    try:
        kinds.check(config) if world is None else rules.check_world(config, world)
    except ConfigError as error:
        assert error.exit_code == 78 and len(str(error).splitlines()) == 1
        return str(error)
    return ""


# --- where a value comes from -----------------------------------------------------------------------------------------
@EACH
def test_a_flag_rules_over_the_preset_and_the_preset_over_the_default(cls):
    quick, other = parsed(cls), parsing.parse_config(cls, ["--data", "phantom"])
    assert quick == derived(replace(cls(), **JOB[cls].presets["quickstart"], preset="quickstart", run=quick.run))
    default = JOB[cls].default_preset
    assert other == derived(replace(cls(), **JOB[cls].presets[default], preset=default, run=other.run, data="phantom"))
    flagged = parsed(cls, "--resolution", "32", "--log-kimg", "7", "--keep=5")
    follows = {"gamma": 0.128} if cls is GanConfig else {}
    assert flagged == replace(quick, resolution=32, log_kimg=7.0, keep=5, run=flagged.run, **follows)
    assert parsing.parse_config(cls, ["--preset", default, "--preset=quickstart"]).resolution == quick.resolution


@EACH
def test_an_unknown_preset_is_refused_with_those_that_there_are(cls):
    with pytest.raises(ConfigError) as error:
        parsing.parse_config(cls, ["--preset", "adni999"])
    assert all(name in str(error.value) for name in ("adni999", *JOB[cls].presets)) and error.value.exit_code == 78


@EACH
def test_run_alone_resumes_with_the_runs_own_config(cls, run):
    """Flags are laid over what is stored; with --preset over that preset, whatever is stored."""
    config = parsed(cls, "--lr", "0.3", "--run", str(run.path))
    new = parsing.parse_config(
        cls, ["--data", "phantom", "--run", str(run.path)]
    )  # nothing is stored yet: the default preset
    assert new.preset == JOB[cls].default_preset and new.lr != 0.3
    run.write_config(asdict(config))
    for flags in (["--run", str(run.path)], [f"--run={run.path}"], ["--run", "elsewhere", "--run", str(run.path)]):
        assert parsing.parse_config(cls, flags) == config
    assert parsing.parse_config(cls, ["--run", str(run.path), "--keep", "9"]) == replace(config, keep=9)
    again = parsing.parse_config(cls, ["--preset", "quickstart", "--run", str(run.path)])
    assert again == replace(config, lr=JOB[cls].presets["quickstart"].get("lr", cls().lr))


@EACH
def test_what_is_asked_of_one_attempt_is_not_remembered(cls, run):
    """--override and --dry-run are of the command that has them; a run that was moved is where it is now."""
    stored = asdict(parsed(cls)) | {"override": True, "dry_run": True, "run": "/where/it/was"}
    run.write_config(stored)
    again = parsing.parse_config(cls, ["--run", str(run.path)])
    assert not again.override and not again.dry_run and again.run == str(run.path)
    assert parsing.parse_config(cls, ["--run", str(run.path), "--override"]).override


@EACH
def test_a_stored_config_that_cannot_be_read_is_refused(cls, run):
    for text in ("{", "[]", '{"krop": 1}', '{"batch": "8"}'):
        run.config.write_text(text)
        with pytest.raises(ConfigError) as error:
            parsing.parse_config(cls, ["--run", str(run.path)])
        assert len(str(error.value).splitlines()) == 1


def test_paths_become_absolute(tmp_path, monkeypatch):
    """A requeued job starts in another folder and means the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("vgg.pth").touch()
    source = RunDir(tmp_path / "source")
    source.create()
    (source.checkpoints / "000000000000.json").write_text("{}")
    source.write_config({})
    c = parsed(GanConfig, "--data", "slices", "--run", "r", "--init-from", "source")
    assert (c.data, c.run, c.init_from) == tuple(str(tmp_path / name) for name in ("slices", "r", "source"))
    c = parsed(VaeConfig, "--data", "~/slices", "--run", "~/r", "--perceptual-file", "vgg.pth")
    home = tmp_path / "home"
    assert (c.data, c.run, c.perceptual_file) == (str(home / "slices"), str(home / "r"), str(tmp_path / "vgg.pth"))
    assert parsed(DiffusionConfig, "--vae", "v").vae == str(tmp_path / "v") and parsed(DiffusionConfig).vae == ""
    assert parsed(GanConfig, "--data", "phantom").data == "phantom"
    assert parsed(GanConfig, "--data", "phantom:7").data == "phantom:7"
    assert parsed(GanConfig, "--data", "phantoms").data == str(tmp_path / "phantoms")
    c = parsed(GanConfig)
    assert c.run == str(specs.ROOT / "runs" / parsing.default_name(c)) and c.init_from == ""


def test_a_run_in_the_home_folder_is_found_by_its_short_name(tmp_path, monkeypatch):
    """A shell leaves the tilde of --run=~/run as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    run = RunDir(tmp_path / "run")
    run.create()
    config = parsed(GanConfig, "--gamma", "3", "--run", str(run.path))
    run.write_config(asdict(config))
    assert parsing.parse_config(GanConfig, ["--run=~/run"]) == config
    assert plan.resolve("stylegan2", "", "", ["--run=~/run"], choose_site("", None, local=True)) == config


@EACH
def test_a_config_comes_back_from_its_json(cls):
    config = parsed(cls)
    text = parsing.to_json(config)
    assert parsing.from_dict(cls, json.loads(text)) == config and list(json.loads(text)) == sorted(asdict(config))


@EACH
def test_a_stored_value_has_the_type_of_its_field(cls):
    """A whole number stands for a fraction, and nothing else for anything else; what a newer version added has its
    default."""
    assert parsing.from_dict(cls, {}) == cls() and parsing.from_dict(cls, {"lr": 1}).lr == 1
    wrong = {bool: (0, "x", None), int: (1.0, True, "1", None), float: (True, "1", None, []), str: (0, None, False)}
    for field in fields(cls):
        default = getattr(cls(), field.name)
        for value in wrong[type(default)]:
            with pytest.raises(ConfigError, match=rf"\b{field.name} is "):
                parsing.from_dict(cls, {field.name: value})
        assert parsing.from_dict(cls, {field.name: default}) == cls()
    with pytest.raises(ConfigError, match="'another', 'krop'"):
        parsing.from_dict(cls, {"krop": 1, "another": 2, "batch": 8})


# --- refusals ---------------------------------------------------------------------------------------------------------
TINY = 1e-12
# field: [(last good value, first bad value beside it)]; over it what else the good value needs.
POSITIVE, POSITIVE_INT = [(TINY, 0.0), (TINY, -TINY)], [(1, 0), (1, -1)]
NOT_NEGATIVE, NOT_NEGATIVE_INT = [(0.0, -TINY)], [(0, -1)]
SHARE = [(0.0, -TINY), (1.0, 1 + 1e-9)]
BELOW_ONE = [(0.0, -TINY), (1 - 1e-9, 1.0)]
_TRAIN = dict(
    max_bad=SHARE, resolution=[(32, 16), (32, 31), (32, 33), (512, 1024), (256, 0), (256, -64)],
    crop=NOT_NEGATIVE_INT, batch=POSITIVE_INT, accumulate=POSITIVE_INT, total_kimg=POSITIVE, ema_kimg=NOT_NEGATIVE,
    ema_rampup=NOT_NEGATIVE, threads=NOT_NEGATIVE_INT, log_kimg=POSITIVE, sample_kimg=POSITIVE,
    checkpoint_minutes=NOT_NEGATIVE,
    checkpoint_kimg=NOT_NEGATIVE, keep=POSITIVE_INT, lr=POSITIVE, keep_weights=NOT_NEGATIVE_INT,
)  # fmt: skip
_DENOISING = _TRAIN | dict(
    warmup_kimg=NOT_NEGATIVE, decay_kimg=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE, clip=POSITIVE, num_res=POSITIVE_INT
)
BOUNDS = {
    GanConfig: _TRAIN | dict(
        z_dim=POSITIVE_INT, w_dim=POSITIVE_INT, mapping_layers=POSITIVE_INT, channel_base=[(32, 31), (32, 0)],
        channel_max=POSITIVE_INT,
        mbstd_group=POSITIVE_INT, gamma=NOT_NEGATIVE, r1_interval=POSITIVE_INT, pl_weight=NOT_NEGATIVE,
        pl_interval=POSITIVE_INT,
        metric_kimg=NOT_NEGATIVE,
        pl_decay=SHARE, style_mixing=SHARE, ada_target=[(-1.0, -1 - 1e-9), (1.0, 1 + 1e-9)], ada_kimg=NOT_NEGATIVE,
    ),
    VaeConfig: _DENOISING | dict(
        latent_channels=POSITIVE_INT, width=POSITIVE_INT, disc_width=POSITIVE_INT, plateau_kimg=POSITIVE,
        kl_weight=NOT_NEGATIVE,
        structure_weight=NOT_NEGATIVE, perceptual_weight=NOT_NEGATIVE, gan_weight=NOT_NEGATIVE,
        gan_start_kimg=NOT_NEGATIVE,
    ),
    DiffusionConfig: _DENOISING | dict(
        class_dropout=BELOW_ONE, dropout=BELOW_ONE, head_dim=POSITIVE_INT, steps=POSITIVE_INT, metric_kimg=NOT_NEGATIVE,
        min_snr_gamma=NOT_NEGATIVE,
        fast_steps=[(2, 1), (1000, 1001)],
    ),
}  # fmt: skip
FAST = dict(times="fast-uniform", sampler="ddim")


def plain(cls):
    """A config that leaves every number free: a batch of one, no groups, no half batches."""
    config = derived(replace(cls(), data="phantom", resolution=32, batch=1))
    return {
        GanConfig: lambda: replace(config, mbstd_group=1, pl_weight=0.0, channel_base=512),
        VaeConfig: lambda: config,
        DiffusionConfig: lambda: replace(config, **FAST),
    }[cls]()


@EACH
def test_every_number_has_bounds(cls):
    """The last good value passes, the first bad one is refused by the name of its flag."""
    numbers = {f.name for f in fields(cls) if type(getattr(cls(), f.name)) in (int, float)}
    free = {"seed", "channels", "down"}  # any seed; choices
    assert set(BOUNDS[cls]) == numbers - free
    for name, bounds in BOUNDS[cls].items():
        for good, bad in bounds:
            extra = {"channel_base": 512} if name == "resolution" and cls is GanConfig else {}
            assert refusal(replace(plain(cls), **{name: good, **extra})) == "", (name, good)
            text = refusal(replace(plain(cls), **{name: bad, **extra}))
            assert f"--{name.replace('_', '-')} {bad}" in text, (name, bad, text)


@EACH
def test_a_number_that_is_none_is_refused_by_the_name_of_its_flag(cls):
    for field in fields(cls):
        if isinstance(getattr(cls(), field.name), float):
            for value in (math.nan, math.inf, -math.inf):
                text = refusal(replace(plain(cls), **{field.name: value}))
                assert f"--{field.name.replace('_', '-')} {value}" in text and "finite" in text


def test_only_a_stylegan2_needs_a_power_of_two():
    """The others need whole strides of their own; the refusal names the nearest size that has them."""
    for r in (48, 96, 192, 240, 500):
        assert "power of two" in refusal(replace(plain(GanConfig), resolution=r, channel_base=512))
        for down, good in ((2, True), (4, r % 4 == 0), (8, r % 8 == 0)):
            text = refusal(replace(plain(VaeConfig), resolution=r, down=down))
            assert (text == "") if good else f"multiple of {down}" in text and f"use {round(r / down) * down}" in text
    assert "use 48" in refusal(replace(plain(VaeConfig), resolution=47, down=8))
    pixels = dict(space="pixel", widths="16,32,64", resolution=48)
    assert refusal(replace(plain(DiffusionConfig), **pixels)) == ""
    assert "use 48" in refusal(replace(plain(DiffusionConfig), **pixels | dict(resolution=50)))
    assert refusal(replace(plain(DiffusionConfig), resolution=240)) == ""
    assert "use 240" in refusal(replace(plain(DiffusionConfig), resolution=241))


def test_attention_at_no_side_is_said():
    c = replace(plain(DiffusionConfig), widths="8,16,32", attention="16,8")
    assert rules.attention_note(c, 32) == "" and rules.attention_note(replace(c, attention=""), 24) == ""
    assert "--attention 16,8" in rules.attention_note(c, 24) and "24,12,6" in rules.attention_note(c, 24)


@EACH
def test_no_data_is_refused(cls):
    assert "--data" in refusal(replace(plain(cls), data=""))
    assert refusal(replace(plain(cls), data="anything")) == ""  # what is there is seen when it is opened


def test_a_generator_has_a_feature_map_at_every_resolution():
    for r in (32, 64, 512):
        assert refusal(replace(plain(GanConfig), resolution=r, channel_base=r)) == ""
        text = refusal(replace(plain(GanConfig), resolution=r, channel_base=r - 1))
        assert f"--channel-base {r - 1}" in text and str(8 * r) in text


def test_the_perceptual_file_is_there(tmp_path):
    (tmp_path / "vgg.pth").touch()
    assert refusal(replace(plain(VaeConfig), perceptual_file=str(tmp_path / "vgg.pth"))) == ""
    for name in ("none.pth", ""):
        text = refusal(replace(plain(VaeConfig), perceptual_file=str(tmp_path / name)))
        assert f"--perceptual-file {tmp_path / name}" in text  # a folder is no file either


def test_epsilon_says_nothing_at_pure_noise():
    for schedule, target in itertools.product(
        ("linear", "scaled-linear", "cosine", "zero-snr", "flow"), ("epsilon", "x0", "v", "flow")
    ):
        text = refusal(replace(plain(DiffusionConfig), schedule=schedule, target=target))
        refused = target == "epsilon" and schedule in ("zero-snr", "flow")
        assert ("--target epsilon" in text and schedule in text and "--target v" in text) if refused else text == ""


def test_a_network_of_few_times_is_sampled_at_these_alone():
    for times, sampler in itertools.product(
        ("uniform", "logit-normal", "fast-uniform", "fast-nonuniform"),
        ("midpoint", "dpmpp-2m", "ddim", "ancestral", "heun"),
    ):
        text = refusal(replace(plain(DiffusionConfig), times=times, sampler=sampler))
        refused = times.startswith("fast") and sampler not in ("ddim", "ancestral")
        assert (f"--times {times}" in text and "--sampler" in text) if refused else text == ""
    for times, steps, good in (
        ("fast-uniform", 2, True), ("fast-uniform", 1, False), ("fast-nonuniform", 4, True),
        ("fast-nonuniform", 3, False),
        ("fast-nonuniform", 1000, True), ("fast-nonuniform", 1001, False), ("uniform", 1, True),
        ("logit-normal", 0, True),
    ):  # fmt: skip
        text = refusal(replace(plain(DiffusionConfig), times=times, fast_steps=steps))
        assert text == "" if good else f"--fast-steps {steps}" in text and times in text


def test_heads_divide_the_channels_or_are_one():
    for widths, head_dim, good in (
        ("64,128", 64, True), ("32,64", 64, True), ("64,96", 64, False), ("96,64", 64, False), ("65", 64, False),
        ("63", 64, True), ("48,96", 48, True), ("48,96", 32, False),
    ):  # fmt: skip
        text = refusal(replace(plain(DiffusionConfig), widths=widths, head_dim=head_dim))
        assert text == "" if good else f"--head-dim {head_dim}" in text and widths in text


def test_widths_and_sides_are_whole_numbers_with_commas():
    for text, values in (("64", (64,)), ("64,128", (64, 128)), (" 8 , 16 ", (8, 16)), ("8,,16,", (8, 16)), ("1", (1,))):
        assert specs.numbers(text, "widths") == specs.numbers(text, "attention") == values
    for text in ("x", "8;16", "8,x", "1.5", "0", "8,0", "-8", ",", " , "):
        for flag in ("widths", "attention"):
            with pytest.raises(ConfigError, match=f"--{flag} "):
                specs.numbers(text, flag)
            assert f"--{flag}" in refusal(replace(plain(DiffusionConfig), **{flag: text}))
    for text in ("", "  "):
        assert specs.numbers(text, "attention") == ()  # none but in the middle; no network is without widths
        with pytest.raises(ConfigError, match="--widths"):
            specs.numbers(text, "widths")


def test_pixels_need_no_vae():
    for space, vae in itertools.product(("latent", "pixel"), ("", "somewhere")):
        text = refusal(replace(plain(DiffusionConfig), space=space, vae=vae))
        assert (text == "") == (space == "latent" or not vae) and ("--vae" in text) == bool(text)


def test_classes_are_needed_to_condition_on():
    for cls in (GanConfig, DiffusionConfig):
        rules.check_classes(replace(plain(cls), conditional=True), ["AD", "NC"])
        for classes in (["AD"], []):
            rules.check_classes(plain(cls), classes)
            with pytest.raises(ConfigError, match="--conditional"):
                rules.check_classes(replace(plain(cls), conditional=True), classes)


def test_a_batch_falls_into_whole_groups_on_every_rank_and_micro_batch(monkeypatch):
    """And half of it into whole rows, where path length takes half; what is named as the way out is one."""
    sizes, worlds, accumulations, groups = range(1, 33), (1, 2, 3), (1, 2), (1, 4)
    for batch, world, accumulate, group, pl in itertools.product(sizes, worlds, accumulations, groups, (0.0, 2.0)):
        gan = replace(plain(GanConfig), batch=batch, accumulate=accumulate, mbstd_group=group, pl_weight=pl)
        per_rank = batch / world / accumulate
        good = per_rank % group == 0 and (not pl or (batch // 2) / world / accumulate % 1 == 0)
        text = refusal(gan, world)
        assert (text == "") == good
        if text:
            multiple = int(re.search(r"multiple of (\d+)", text)[1])
            again = refusal(replace(gan, batch=multiple), world)
            assert f"--batch {batch}" in text and again == ""
        monkeypatch.setenv("WORLD_SIZE", str(world))
        assert refusal(gan) == text
        for cls in (VaeConfig, DiffusionConfig):
            other = replace(plain(cls), batch=batch, accumulate=accumulate)
            assert (refusal(other, world) == "") == (batch % (world * accumulate) == 0)


# --- starting from another run ----------------------------------------------------------------------------------------
@EACH
def test_a_run_to_start_from_has_a_checkpoint_and_the_same_architecture(cls, run, tmp_path):
    config = replace(plain(cls), init_from=str(run.path), run=str(tmp_path / "new"))
    assert "no checkpoint there" in refusal(config) and "no checkpoint" in refusal(replace(config, init_from="nowhere"))
    (run.checkpoints / "000000000008.json").write_text("{}")
    assert "--run" in refusal(config)  # which has lost its config
    run.write_config(asdict(config) | {"lr": 77.0, "data": "others", "keep": 1})
    assert refusal(config) == ""
    for name in rules.ARCHITECTURE & {f.name for f in fields(cls)} - {"resolution"}:
        run.write_config(asdict(config) | {name: "other"})
        text = refusal(config)
        assert "another architecture" in text
        assert f"--{name.replace('_', '-')} other -> {getattr(config, name)}" in text
    stored = asdict(config)
    del stored["resolution"]  # of an earlier version, which did not have the flag
    run.write_config(stored)
    assert refusal(config) == ""


@EACH
def test_a_run_that_has_begun_needs_its_source_no_more(cls, run, tmp_path):
    config = replace(plain(cls), init_from=str(tmp_path / "gone"), run=str(run.path))
    assert "--init-from" in refusal(config)
    (run.checkpoints / "000000000000.json").write_text("{}")
    assert refusal(config) == ""


# --- rough sizes ------------------------------------------------------------------------------------------------------
def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def tensors(*networks: torch.nn.Module, once: tuple = ()) -> float:
    """GB of a checkpoint in fp32: weights and two moments of what is trained, and what is kept once."""
    return 4 * (3 * sum(map(count, networks)) + sum(map(count, once))) / 1e9


@pytest.mark.parametrize("preset", presets.GAN_PRESETS)
def test_the_size_of_a_gan_is_about_that_of_its_networks(preset):
    c = parsing.parse_config(GanConfig, ["--preset", preset, "--data", "phantom"])
    with torch.device("meta"):
        s = train_gan.build_state(c, 0, torch.device("meta"))
    assert sizes.gan_parameters(c) == pytest.approx(count(s.G) + count(s.D), rel=0.15)
    assert sizes.gan_checkpoint_gb(c) == pytest.approx(tensors(s.G, s.D, once=(s.G_ema,)), rel=0.15)


@pytest.mark.parametrize(
    "flags", ["", "--down 4", "--width 128", "--num-res 3", "--disc-width 128", "--gan-weight 0 --width 16 --down 4"]
)
def test_the_size_of_a_vae_is_about_that_of_its_networks(flags):
    c = parsing.parse_config(VaeConfig, ["--data", "phantom", *flags.split()])
    with torch.device("meta"):
        s = pretrain_vae.build_state(c, torch.device("meta"))
    trained = (s.vae, s.D) if c.gan_weight else (s.vae,)
    assert sizes.vae_parameters(c) == pytest.approx(sum(map(count, trained)), rel=0.2)
    once = (s.vae_ema,) if c.gan_weight else (s.vae_ema, s.D)
    assert sizes.vae_checkpoint_gb(c) == pytest.approx(tensors(*trained, once=once), rel=0.2)


@pytest.mark.parametrize("flags", ["", "--widths 64,128,256", "--num-res 3", "--widths 64,64 --attention=8"])
def test_the_size_of_a_unet_is_about_that_of_the_network(flags):
    c = parsing.parse_config(DiffusionConfig, ["--data", "phantom", *flags.split()])
    with torch.device("meta"):
        unet = train_diffusion.build_unet(c, (8, 32, 32), 2)
    assert sizes.unet_parameters(c) == pytest.approx(count(unet), rel=0.25)
    assert sizes.diffusion_checkpoint_gb(c) == pytest.approx(tensors(unet, once=(unet,)), rel=0.25)


# What launch.py says before a job: the formulas' figures.
MEMORY_GB = {
    (GanConfig, "adni256"): 12.2, (GanConfig, "adni128"): 6.31, (GanConfig, "oasis64"): 3.36,
    (GanConfig, "quickstart"): 0.053,
    (VaeConfig, "adni256-ldm"): 16.5, (VaeConfig, "quickstart"): 0.096, (DiffusionConfig, "adni256-ldm"): 4.05,
}  # fmt: skip
# The peaks of steps on the GPU that is not there (tests/fake_cuda.py), the largest phase, in GB, with GroupNorm in its
# input's type. Flags over a preset's: half precision where none is named.
PEAKS_GB = [
    (GanConfig, "adni256", "", 12.17),
    (GanConfig, "adni256", "--batch 16", 3.71),
    (GanConfig, "adni256", "--accumulate 2", 6.66),
    (GanConfig, "adni256", "--batch 32 --precision fp32", 12.16),
    (GanConfig, "adni256", "--batch 32 --precision fp16", 8.97),
    (GanConfig, "adni256", "--batch 32 --precision fp16 --loss logistic", 8.83),
    (GanConfig, "adni256", "--loss logistic", 10.29),
    (GanConfig, "adni256", "--batch 32 --pl-weight 2", 6.53),
    (GanConfig, "adni256", "--batch 32 --channel-base 32768", 11.83),
    (GanConfig, "adni256", "--batch 32 --channel-base 8192 --channel-max 256", 3.13),
    (GanConfig, "adni128", "", 6.28),
    (GanConfig, "oasis64", "", 3.34),
    (GanConfig, "adni128", "--precision fp32", 11.69),
    (VaeConfig, "adni256-ldm", "", 16.21),
    (VaeConfig, "adni256-ldm", "--batch 8", 4.33),
    (VaeConfig, "adni256-ldm", "--batch 16 --precision fp32", 16.14),
    (VaeConfig, "adni256-ldm", "--batch 16 --width 128", 17.03),
    (VaeConfig, "adni256-ldm", "--batch 16 --num-res 1", 5.27),
    (VaeConfig, "adni256-ldm", "--batch 16 --down 4", 8.91),
    (VaeConfig, "adni256-ldm", "--batch 32 --resolution 128", 4.33),
    (DiffusionConfig, "adni256-ldm", "", 3.99),
    (DiffusionConfig, "adni256-ldm", "--batch 32", 1.39),
    (DiffusionConfig, "adni256-ldm", "--batch 64 --precision fp32", 3.92),
    (DiffusionConfig, "adni256-ldm", "--batch 64 --widths 128,256,512", 3.15),
    (DiffusionConfig, "adni256-ldm", "--batch 64 --num-res 1", 1.51),
    (DiffusionConfig, "adni256-ldm", "--batch 64 --attention 32,16,8", 2.79),
]


@pytest.mark.parametrize(("cls", "preset", "flags", "peak"), PEAKS_GB, ids=[f"{p} {f}" for _, p, f, _ in PEAKS_GB])
def test_memory_is_what_a_step_takes(cls, preset, flags, peak):
    c = parsing.parse_config(cls, ["--preset", preset, "--data", "phantom", *flags.split()])
    assert JOB[cls].memory_gb(c, 1, (8, 0)) == pytest.approx(peak, rel=0.12)


@pytest.mark.parametrize("cls", CONFIGS)
def test_auto_counts_what_the_card_computes_in(cls):
    """A V100 has no bf16, so `auto` is fp32 there."""
    c = parsing.parse_config(cls, ["--data", "phantom"])
    gb = JOB[cls].memory_gb
    auto, fp32 = replace(c, precision="auto"), replace(c, precision="fp32")
    assert gb(auto, 1) == gb(auto, 1, (8, 0)) == gb(auto, 1, (9, 0)) == gb(replace(c, precision="bf16"), 1, (7, 0))
    assert gb(auto, 1, (7, 5)) == gb(fp32, 1) == gb(fp32, 1, (8, 0)) > 1.5 * gb(auto, 1)


def test_a_step_needs_more_than_its_tensors():
    assert sizes.with_margin(10.0) == pytest.approx(12.0)


# --- batch auto -------------------------------------------------------------------------------------------------------
CARD = card_of("gpu:a100:1")


@pytest.mark.parametrize("cls", CONFIGS)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("gres", ["a100", "a100-80gb", "v100", "a100_1g.5gb"])
def test_the_largest_batch_fits_and_the_next_does_not(cls, world, gres):
    c = parsing.parse_config(cls, ["--data", "phantom"])
    card = card_of(gres)
    batch, accumulate = kinds.largest_batch(c, world, card)

    def fits(batch: int, accumulate: int) -> bool:
        config = replace(c, batch=batch, accumulate=accumulate)
        try:
            rules.check_world(config, world)
        except ConfigError:
            return False
        return sizes.with_margin(JOB[cls].memory_gb(config, world, card.capability)) <= card.gb

    assert fits(batch, accumulate) and batch >= c.batch
    if accumulate == 1:
        assert not any(fits(batch + 8 * k, 1) for k in range(1, 200))
    else:
        assert not any(fits(batch, n) for n in range(1, accumulate))
        assert batch - c.batch < 8 * world and (world == 3 or batch == c.batch)


def test_a_network_that_no_batch_fits_is_refused():
    c = parsing.parse_config(GanConfig, ["--data", "phantom", "--channel-max", "4096", "--channel-base", "65536"])
    with pytest.raises(ConfigError, match="not one group of images"):
        kinds.largest_batch(c, 1, card_of("a100_1g.5gb"))


@pytest.mark.parametrize(
    ("argv", "words", "auto"),
    [
        (["--batch", "auto", "--lr", "1"], ["--lr", "1"], True), (["--batch=auto"], [], True),
        (["--batch", "8"], ["--batch", "8"], False), (["--batch=8", "x"], ["--batch=8", "x"], False),
        (["--batch", "auto", "--batch", "8"], ["--batch", "8"], False), (["--batch"], ["--batch"], False),
        (["--name", "auto"], ["--name", "auto"], False), (["--batch", "8", "--batch", "auto"], ["--batch", "8"], True),
    ],
)  # fmt: skip
def test_auto_is_taken_from_the_words(argv, words, auto):
    assert parsing.take_auto(argv) == (words, auto)


def test_batch_auto_is_what_the_gpu_holds_and_a_run_keeps_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parsing, "local_card", lambda: CARD)
    flags = ["--preset", "adni256", "--data", "phantom", "--batch", "auto"]
    c = parsing.parse_config(GanConfig, flags)
    assert (c.batch, c.accumulate) == kinds.largest_batch(replace(c, batch=64), 1, CARD) == (192, 1)
    said = capsys.readouterr().err
    assert "--batch 192 --accumulate 1" in said and "A100" in said and "40 GB" in said and said.count("\n") == 1
    assert Path(c.run).name == parsing.default_name(c)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parsing.parse_config(GanConfig, flags).batch == 392
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(parsing.to_json(replace(c, batch=32, accumulate=2)))
    c = parsing.parse_config(GanConfig, [*flags, "--run", str(run)])
    assert (c.batch, c.accumulate) == (32, 2)
    monkeypatch.setattr(parsing, "local_card", lambda: None)
    with pytest.raises(ConfigError, match="give --batch N"):
        parsing.parse_config(GanConfig, flags)


def test_the_gpu_of_this_machine_as_nvidia_smi_has_it(monkeypatch):
    said = SimpleNamespace(stdout="NVIDIA A100-SXM4-40GB, 8.0, 40960\nNVIDIA T4, 7.5, 15360\n")
    monkeypatch.setattr(parsing.subprocess, "run", lambda *a, **k: said)
    assert parsing.local_card() == Card("NVIDIA A100-SXM4-40GB", (8, 0), 42.9)
    for text in ("", "No devices were found\n"):
        said.stdout = text
        assert parsing.local_card() is None


@pytest.mark.parametrize(("cls", "preset"), MEMORY_GB, ids=[f"{c.__name__}-{p}" for c, p in MEMORY_GB])
def test_memory_grows_with_what_a_step_holds(cls, preset):
    """Linear in the images of a micro-batch, whichever flag makes it smaller; the weights stay."""
    job = JOB[cls]
    c = parsing.parse_config(cls, ["--preset", preset, "--data", "phantom"])
    whole = job.memory_gb(c)
    assert whole == job.memory_gb(c, 1) == pytest.approx(MEMORY_GB[cls, preset], rel=0.05)
    half = job.memory_gb(c, 2)
    assert half == job.memory_gb(replace(c, accumulate=2)) == job.memory_gb(replace(c, batch=c.batch // 2))
    weights = 2 * half - whole  # what is left for a batch of none
    assert 0 < job.checkpoint_gb(c) < weights * 1.01 and half < whole
    assert job.memory_gb(c, 4) == pytest.approx(weights + (whole - weights) / 4)
    assert job.memory_gb(replace(c, batch=2 * c.batch)) == pytest.approx(weights + 2 * (whole - weights))
    fp32, bf16 = (job.memory_gb(replace(c, precision=name)) - weights for name in ("fp32", "bf16"))
    assert fp32 == pytest.approx(2 * bf16) and job.memory_gb(replace(c, resolution=2 * c.resolution)) > whole
    assert job.checkpoint_gb(replace(c, batch=1)) == job.checkpoint_gb(c)


def test_memory_grows_with_the_networks():
    gan, vae, unet = (replace(plain(cls), data="phantom", batch=8) for cls in CONFIGS)
    larger = [
        (gan, dict(channel_base=1024)), (gan, dict(w_dim=1024)), (gan, dict(mapping_layers=16)), (vae, dict(width=128)),
        (vae, dict(num_res=3)), (vae, dict(disc_width=128)), (unet, dict(widths="64,128,512")), (unet, dict(num_res=3)),
    ]  # fmt: skip
    for config, change in larger:
        job = JOB[type(config)]
        for size in (job.memory_gb, job.checkpoint_gb):
            assert size(replace(config, **change)) > size(config), change
    activations = sizes.vae_memory_gb(replace(vae, perceptual_file="vgg.pth")) - sizes.vae_memory_gb(vae)
    assert activations == pytest.approx(8 * 540 * 32 * 32 * 2 / 1e9)
    assert sizes.diffusion_memory_gb(replace(unet, space="pixel")) > 2 * sizes.diffusion_memory_gb(unet) - 0.4
    assert sizes.vae_memory_gb(replace(vae, down=8)) >= sizes.vae_memory_gb(replace(vae, down=2))


def test_what_a_config_may_name_is_what_there_is_an_algorithm_for():
    """The room of configurations imports no models, so the names stand in both."""
    chosen = [typing.get_args(kind) for kind in (specs.Sampler, specs.Schedule, specs.Target, specs.Times)]
    assert chosen == [tuple(names.SAMPLERS), names.SCHEDULES, names.TARGETS, names.TIME_SETS]
    assert specs.OF_LISTED_TIMES == names.OF_LISTED_TIMES
