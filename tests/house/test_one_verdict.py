"""launch.py and the training script judge a configuration, the state of a run and the state of the data alike.

The launcher refuses before anything is queued, the script on the node: two words on one thing would cost a day in the
queue.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from inprocess import run_main
from PIL import Image
from tiny import FLAGS

from jobs.cluster import preflight, sites
from jobs.cluster.options import Options
from jobs.cluster.plan import make_plan
from jobs.config import kinds
from jobs.config.specs import ConfigError
from jobs.run.rundir import RunDir

GAN, VAE, DIFFUSION = "train_gan.py", "pretrain_vae.py", "train_diffusion.py"
JOB = {row.script: name for name, row in kinds.JOBS.items()}


def launcher(script: str, *flags: str) -> bool:
    """Whether launch.py would queue it."""
    options = Options(job=JOB[script], local=True, gpus=0)
    try:
        plan = make_plan(options, [*FLAGS[script], *flags], sites.load_sites()["local"], None)
    except ConfigError:
        return False
    return not any(check.level == "fail" for check in preflight.check_plan(plan, None))


def script_says(script: str, *flags: str, packs: Path, dry: bool) -> int:
    return run_main(script, *flags, *(["--dry-run"] if dry else []), packs=packs).code


def slices(folder: Path, suffix: str = ".png", number: int = 12, empty: int = 0) -> Path:
    folder.mkdir(parents=True)
    for i in range(number):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(pixels).save(folder / f"s{i}{suffix}")
    for i in range(empty):
        (folder / f"empty{i}{suffix}").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory, packs) -> dict[str, Path]:
    """A run of 40 images of each script; the VAE is finished."""
    base = tmp_path_factory.mktemp("begun")
    for script, name in ((GAN, "gan"), (VAE, "vae")):
        assert run_main(script, "--run", str(base / name), "--total-kimg", "0.04", packs=packs).code == 0
    return {GAN: base / "gan", VAE: base / "vae"}


@pytest.fixture
def copy(begun, tmp_path):
    """A copy of a run that a test may change."""

    def make(script: str, name: str = "run") -> Path:
        return Path(shutil.copytree(begun[script], tmp_path / name))

    return make


def older_config(run: Path) -> None:
    """As a version of before a flag existed has stored it."""
    stored = json.loads((run / "config.json").read_text())
    del stored["hflip"]
    (run / "config.json").write_text(json.dumps(stored))


# what is asked of a run of 40 images -> whether it goes on
RUNS = [
    pytest.param((), None, True, id="the same flags"),
    pytest.param(("--lr", "0.5"), None, False, id="another rate"),
    pytest.param(("--lr", "0.5", "--override"), None, True, id="another rate, overridden"),
    pytest.param(("--z-dim", "8"), None, False, id="another architecture"),
    pytest.param(("--z-dim", "8", "--override"), None, False, id="another architecture, overridden"),
    pytest.param(("--total-kimg", "0.08"), None, True, id="longer"),
    pytest.param(("--total-kimg", "0.016"), None, False, id="shorter than what it has seen"),
    pytest.param(("--log-kimg", "1"), None, True, id="another interval"),
    pytest.param((), older_config, True, id="stored before a flag existed"),
    pytest.param((), lambda run: (run / "config.json").write_text("{"), False, id="damaged config"),
    pytest.param(
        (), lambda run: (run / "config.json").write_text('{"lr": "fast"}'), False, id="config of another type"
    ),
]


@pytest.mark.parametrize(("flags", "change", "goes_on"), RUNS)
def test_the_state_of_a_run(copy, packs, flags, change, goes_on):
    run = copy(GAN)
    with contextlib.suppress(FileNotFoundError):
        (run / "DONE").unlink()
    if change:
        change(run)
    asked = ["--run", str(run), *([] if "--total-kimg" in flags else ["--total-kimg", "0.04"]), *flags]
    assert launcher(GAN, *asked) is goes_on
    assert (script_says(GAN, *asked, packs=packs, dry=True) == 0) is goes_on


DATA = [
    pytest.param(lambda f: slices(f), True, id="png"),
    pytest.param(lambda f: slices(f, ".webp"), True, id="webp"),
    pytest.param(lambda f: slices(f, ".gif"), True, id="gif"),
    pytest.param(lambda f: slices(f, ".JPG"), True, id="JPG"),
    pytest.param(lambda f: f, False, id="not there"),
    pytest.param(lambda f: f.mkdir(), False, id="empty folder"),
]


@pytest.mark.parametrize(("make", "usable"), DATA)
def test_the_state_of_the_data(tmp_path, packs, make, usable):
    make(tmp_path / "slices")
    asked = ["--run", str(tmp_path / "run"), "--data", str(tmp_path / "slices"), "--split", "all"]
    assert launcher(GAN, *asked) is usable
    assert (script_says(GAN, *asked, packs=packs, dry=True) == 0) is usable


def test_a_dry_run_refuses_what_the_run_would_refuse(tmp_path, packs):
    """A tenth of the files is empty, which can be seen without decoding any."""
    asked = [
        "--run",
        str(tmp_path / "run"),
        "--data",
        str(slices(tmp_path / "s", number=180, empty=20)),
        "--split",
        "all",
    ]
    assert script_says(GAN, *asked, packs=packs, dry=True) == 78
    assert script_says(GAN, *asked, packs=packs, dry=False) == 78
    assert script_says(GAN, *asked, "--max-bad", "0.2", packs=packs, dry=True) == 0


def no_weights(run: Path) -> None:
    (run / "weights.safetensors").unlink()


VAES = [
    pytest.param(None, (), True, id="finished, beside it"),
    pytest.param(lambda run: (run / "DONE").unlink(), (), False, id="not finished"),
    pytest.param(lambda run: run.chmod(0o777), (), False, id="everybody may write to it"),
    pytest.param(no_weights, (), False, id="done without weights"),
    pytest.param(None, ("--resolution", "64"), False, id="of another size"),
    pytest.param(lambda run: (run / "DONE").unlink(), ("--vae", "{run}"), True, id="not finished, named"),
    pytest.param(no_weights, ("--vae", "{run}"), False, id="without weights, named"),
    pytest.param(None, ("--vae", "{run}/weights.safetensors"), True, id="its weights file"),
    pytest.param(None, ("--vae", "{run}/nothing.safetensors"), False, id="no such weights file"),
]


@pytest.mark.parametrize(("change", "flags", "found"), VAES)
def test_the_vae_of_a_diffusion_run(copy, packs, change, flags, found):
    vae = copy(VAE, "vae")
    if change:
        change(vae)
    asked = ["--run", str(vae.parent / "new"), *(flag.format(run=vae) for flag in flags)]
    assert launcher(DIFFUSION, *asked) is found
    assert (script_says(DIFFUSION, *asked, packs=packs, dry=True) == 0) is found


def test_relative_paths_mean_the_same_on_the_node(tmp_path, packs, monkeypatch):
    """The job runs in another folder than the one in which launch.py was typed."""
    monkeypatch.chdir(tmp_path)
    Path("vgg16.pth").write_bytes(b"x")
    slices(Path("slices"))
    flags = [*FLAGS[VAE], "--data", "slices", "--perceptual-file", "vgg16.pth", "--run", "run"]
    plan = make_plan(Options(job="vae", local=True, gpus=0), flags, sites.load_sites()["local"], None)
    for name in ("data", "perceptual_file", "run"):
        assert Path(getattr(plan.config, name)).is_absolute() and getattr(plan.config, name).startswith(str(tmp_path))
    assert not launcher(VAE, *flags[: len(FLAGS[VAE])], "--perceptual-file", "nothing.pth", "--run", "run")


def test_no_stored_config_is_written_by_a_dry_run(tmp_path, packs):
    assert script_says(GAN, "--run", str(tmp_path / "run"), packs=packs, dry=True) == 0
    assert not (tmp_path / "run").exists() and RunDir(tmp_path / "run").read_config() is None
