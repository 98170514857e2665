"""Presets, names of runs, and a run directory that remembers its own configuration."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from jobs.config import parsing, presets, sizes, specs
from jobs.run.rundir import RunDir


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def test_every_preset_resolves_and_names_its_run():
    names = set()
    for preset in presets.GAN_PRESETS:
        data = "phantom" if preset.startswith("adni") else "phantom:9"  # where a preset has data of its own, others
        config = parsing.parse_config(specs.GanConfig, ["--preset", preset, "--data", data])
        names.add(parsing.default_name(config))
        assert parsing.from_dict(specs.GanConfig, json.loads(parsing.to_json(config))) == config
        assert 0.05 < sizes.gan_memory_gb(config) < 40
    assert len(names) == len(presets.GAN_PRESETS)


def test_the_name_of_a_run_depends_on_what_changes_the_result_alone():
    def name(*flags):
        return parsing.default_name(parsing.parse_config(specs.GanConfig, ["--preset", "quickstart", *flags]))

    same = name()
    assert same.startswith("stylegan2-") and len(same) == len("stylegan2-") + 8
    assert name("--total-kimg", "99") == name("--log-kimg", "1") == name("--run", "x") == same
    assert len({same, name("--gamma", "3"), name("--seed", "1"), name("--data", "phantom:5")}) == 4


def test_run_alone_resumes_with_the_runs_own_config(run):
    config = parsing.parse_config(specs.GanConfig, ["--preset", "quickstart", "--gamma", "3", "--run", str(run.path)])
    run.write_config(asdict(config))
    again = parsing.parse_config(specs.GanConfig, ["--run", str(run.path)])
    assert again == config and again.gamma == 3
