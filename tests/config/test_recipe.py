"""What a StyleGAN2's numbers follow from where none is given: worked out once, stored, said in one line."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from inprocess import run_main

from jobs.cluster import plan
from jobs.cluster.sites import choose_site
from jobs.config import kinds, parsing, presets, recipe
from jobs.config.cards import Card
from jobs.config.specs import AUTO, GanConfig, VaeConfig
from jobs.run.rundir import RunDir

FIELDS = "gamma r1_interval pl_weight style_mixing ema_kimg mbstd_group ada_target ada_kimg".split()


def parsed(*flags: str) -> GanConfig:
    return parsing.parse_config(GanConfig, ["--data", "phantom", *flags])


def numbers(c: GanConfig) -> tuple:
    return tuple(getattr(c, name) for name in FIELDS)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [  # gamma, interval, path length, mixing, EMA, group, target, speed. 0.0002 x 256^2 / 64 and so on, by hand
        ("--loss logistic", (0.2048, 16, 2.0, 0.9, 20.0, 4, 0.6, 500.0)),
        ("--loss logistic --resolution 64", (0.0128, 16, 2.0, 0.9, 20.0, 4, 0.6, 500.0)),
        ("--loss logistic --resolution 64 --batch 32", (0.0256, 16, 2.0, 0.9, 10.0, 4, 0.6, 500.0)),
        ("--resolution 64 --batch 16 --loss rpgan", (0.512, 2, 0.0, 0.0, 5.0, 4, 0.5, 500.0)),
        ("", (2.048, 2, 0.0, 0.0, 20.0, 4, 0.5, 500.0)),
        ("--pl-weight 2", (2.048, 2, 2.0, 0.0, 20.0, 4, 0.5, 500.0)),
        ("--loss logistic --resolution 128 --batch 6 --pl-weight 0", (0.5461, 16, 0.0, 0.9, 1.875, 2, 0.6, 500.0)),
        ("--loss logistic --resolution 32 --batch 1 --pl-weight 0", (0.2048, 16, 0.0, 0.9, 0.3125, 1, 0.6, 500.0)),
        ("--gamma 0 --ema-kimg 0 --ada-kimg 7", (0.0, 2, 0.0, 0.0, 0.0, 4, 0.5, 7.0)),  # 0 is off, not auto
        ("--preset quickstart", (0.512, 2, 0.0, 0.0, 1.5, 4, 0.5, 500.0)),
        ("--preset quickstart --loss logistic", (0.0512, 16, 2.0, 0.9, 1.5, 4, 0.6, 500.0)),
        ("--preset quickstart --gamma 0.5 --ema-kimg=auto", (0.5, 2, 0.0, 0.0, 5.0, 4, 0.5, 500.0)),
        ("--preset quickstart --ema_kimg auto --style_mixing=auto", (0.512, 2, 0.0, 0.0, 5.0, 4, 0.5, 500.0)),
        ("--preset adni256 --batch 4 --accumulate 1", (32.77, 2, 0.0, 0.0, 1.25, 4, 0.5, 500.0)),
    ],
)
def test_numbers_follow_resolution_batch_and_loss(flags, expected):
    c = parsed(*flags.split())
    assert numbers(c) == pytest.approx(expected, rel=1e-3) and [type(v) for v in numbers(c)] == [
        float, int, float, float, float, int, float, float,
    ]  # fmt: skip


def test_every_preset_is_resolved_and_works():
    for name in presets.GAN_PRESETS:
        c = parsed("--preset", name)
        kinds.check(c)
        assert AUTO not in numbers(c)
    assert recipe.derived(VaeConfig()) == VaeConfig()


def test_batch_auto_has_the_numbers_of_the_batch_it_comes_to(monkeypatch):
    monkeypatch.setattr(parsing, "local_card", lambda: Card("A100", (8, 0), 40.0))
    c = parsed("--batch", "auto")
    assert c.batch > 64 and c == recipe.derived(replace(c, **dict.fromkeys(FIELDS, AUTO)))


def test_a_warm_start_augments_sooner(tmp_path):
    source = RunDir(tmp_path / "source")
    source.create()
    (source.checkpoints / "000000000000.json").write_text("{}")
    source.write_config({})
    c = parsed("--init-from", str(source.path))
    assert c.ada_kimg == 100 and parsed("--init-from", str(source.path), "--ada-kimg", "500").ada_kimg == 500
    assert "--init-from: " in recipe.recipe_line(c) and "--ada-kimg 100" in recipe.recipe_line(c)


def test_a_run_that_has_begun_keeps_its_numbers(tmp_path):
    """Also one that began before they followed from anything, and another --batch does not move them."""
    run = RunDir(tmp_path / "run")
    run.create()
    before = replace(parsed(), gamma=1.0, mbstd_group=8, ada_target=0.6, run=str(run.path))
    run.write_config(asdict(before))
    for flags in (("--preset", "adni256"), (), ("--preset", "adni256", "--gamma", "auto")):
        c = parsed(*flags, "--run", str(run.path))
        assert (c.gamma, c.mbstd_group, c.ema_kimg) == (1.0, 8, 20.0), flags
    c = parsed("--batch", "32", "--run", str(run.path))
    assert (c.gamma, c.ema_kimg) == (1.0, 20.0)
    assert parsed("--preset", "adni256", "--gamma", "2", "--run", str(run.path)).gamma == 2.0


def test_launcher_and_script_agree():
    site = choose_site("", None, local=True)
    flags = ["--data", "phantom", "--resolution", "64", "--batch", "16"]
    launched = plan.resolve("stylegan2", "", "", flags, site)
    assert launched == parsing.parse_config(GanConfig, flags) and launched.gamma == 0.512
    assert json.loads(parsing.to_json(launched))["gamma"] == 0.512


def test_one_line_says_what_follows_and_what_was_given():
    c = SimpleNamespace(**asdict(parsed("--resolution", "64", "--batch", "16", "--gamma", "2")))
    assert recipe.recipe_line(c) == (
        "from 64 px, --batch 16, --loss rpgan: --r1-interval 2, --pl-weight 0, --style-mixing 0, --ema-kimg 5, "
        "--mbstd-group 4, --ada-target 0.5, --ada-kimg 500; given: --gamma 2 (not 0.512)"
    )
    assert "given" not in recipe.recipe_line(parsed())


def test_a_dry_run_prints_the_numbers(packs, tmp_path):
    flags = ("--preset", "adni128", "--data", "phantom:24", "--resolution", "32", "--batch", "8", "--dry-run")
    outcome = run_main("train_gan.py", *flags, "--run", str(tmp_path / "run"), packs=packs, tiny=False)
    assert outcome.code == 0 and json.loads(outcome.out)["gamma"] == 0.256, outcome.said
    assert "from 32 px, --batch 8, --loss rpgan: --gamma 0.256" in outcome.err
