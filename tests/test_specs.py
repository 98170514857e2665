"""Presets, names of runs, and a run directory that remembers its own configuration."""

from __future__ import annotations

import json

import pytest

from jobs import specs
from jobs.rundir import RunDir


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def test_every_preset_resolves_and_names_its_run():
    names = set()
    for preset in specs.GAN_PRESETS:
        data = "phantom" if preset.startswith("adni") else "phantom:9"  # where a preset has data of its own, others
        config = specs.parse(specs.GanConfig, ["--preset", preset, "--data", data])
        names.add(specs.default_name(config))
        assert specs.from_dict(specs.GanConfig, json.loads(specs.to_json(config))) == config
        assert 0.05 < specs.gan_memory_gb(config) < 40
    assert len(names) == len(specs.GAN_PRESETS)


def test_the_name_of_a_run_depends_on_what_changes_the_result_alone():
    def name(*flags):
        return specs.default_name(specs.parse(specs.GanConfig, ["--preset", "quickstart", *flags]))

    same = name()
    assert same.startswith("stylegan2-") and len(same) == len("stylegan2-") + 8
    assert name("--total-kimg", "99") == name("--log-kimg", "1") == name("--run", "x") == same
    assert len({same, name("--gamma", "3"), name("--seed", "1"), name("--data", "phantom:5")}) == 4


def test_run_alone_resumes_with_the_runs_own_config(run):
    config = specs.parse(specs.GanConfig, ["--preset", "quickstart", "--gamma", "3", "--run", str(run.path)])
    run.write_config(specs.asdict(config))
    again = specs.parse(specs.GanConfig, ["--run", str(run.path)])
    assert again == config and again.gamma == 3
