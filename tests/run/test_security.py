"""Who may do what to whom: no pickles, no shell, no path outside a run, nothing unescaped, nobody else's files."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import forks
import numpy as np
import pytest
import tiny
from PIL import Image

from jobs.cluster import sites, submit
from jobs.cluster.options import Options
from jobs.cluster.plan import make_plan
from jobs.config.specs import ConfigError
from jobs.run.owners import others_may_replace
from jobs.run.rundir import RunDir
from jobs.run.states import RunDirError

ROOT = tiny.ROOT
SOURCES = sorted(
    path for path in ROOT.glob("**/*.py")
    if (room := path.relative_to(ROOT).parts[0]) not in ("tests", "benchmarks", "runs") and not room.startswith(".venv")
)  # fmt: skip
EVIL = [
    "$(touch owned)",
    "`touch owned`",
    "a; touch owned",
    "a && touch owned",
    "a | touch owned",
    "'; touch owned; '",
    '"; touch owned; "',
    "../../owned",
    "-o owned",
    "--help",
    "a b",
    "*",
    "~",
    "50% owned",
    "<img src=x onerror=alert(1)>",
    "é\u202e",
]


# --- no code in data --------------------------------------------------------------------------------------------------
def calls(path: Path):
    """(line, dotted name, keywords) of every call in a source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node.args


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_reads_a_pickle_or_runs_text(path):
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in names:
            assert (name or "").split(".")[0] not in {
                "pickle",
                "cPickle",
                "dill",
                "cloudpickle",
                "joblib",
                "marshal",
                "shelve",
                "yaml",
            }, name
    for line, name, keywords, arguments in calls(path):
        where = f"{path.name}:{line} {name}"
        assert name not in {
            "eval",
            "exec",
            "compile",
            "__import__",
            "os.system",
            "os.popen",
            "torch.hub.load",
            "code.interact",
        }, where
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", where
        if name in {"np.load", "numpy.load"}:
            assert keywords.get("allow_pickle") == "False", where
        assert keywords.get("shell", "False") == "False", where
        if name.startswith("subprocess.") and arguments:  # an argument list, never one string
            assert not isinstance(arguments[0], (ast.JoinedStr, ast.Constant)), where


def test_the_shell_code_evaluates_only_what_was_quoted_for_it():
    """`eval` has one use: the text of jobs.cluster.requeue --begin, which quotes with shlex."""
    used = [
        line.strip()
        for path in sorted((ROOT / "jobs").rglob("*.sh"))
        for line in path.read_text().splitlines()
        if re.search(r"\b(eval|source) ", line.split("#")[0])
    ]
    assert set(used) <= {'eval "$text"', "source jobs/env.sh", "source jobs/venv.sh"}, used


# --- no shell, no path outside ---------------------------------------------------------------------------------------
def plan_of(run: Path, **given):
    options = Options(
        job="stylegan2", preset="quickstart", partition="gpu", time="1:00:00", nodes=1, gpus=1, cpus=1, max_restarts=3
    )
    flags = ["--run", str(run), "--data", "phantom:8"]
    return make_plan(replace(options, **given), flags, sites.load_sites()["generic"], None)


@pytest.mark.parametrize("name", EVIL)
def test_a_run_of_any_name_is_one_word_of_the_batch_script(tmp_path, name):
    """The setup lines of the script are run by bash with srun and env.sh replaced: nothing else happens."""
    run = tmp_path / "runs" / name
    (run / "code" / "jobs").mkdir(parents=True)
    (run / "code" / "jobs" / "env.sh").write_text('printf %s "$RUN" >"$SEEN"\nexit 0\n')
    text = submit.sbatch_text([plan_of(run)])
    assert text.startswith("#!/bin/bash")
    env = {"PATH": os.environ["PATH"], "SEEN": str(tmp_path / "seen"), "SLURM_ARRAY_TASK_ID": "0"}
    subprocess.run(["bash", "-c", text], cwd=tmp_path, env=env, timeout=300, capture_output=True)
    assert (tmp_path / "seen").read_text() == str(run)
    assert not list(tmp_path.rglob("owned"))
    headers = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(len(shlex.split(line[len("#SBATCH ") :])) == 1 for line in headers if name not in line)


@pytest.mark.parametrize("bad", ["a\ntouch owned", "a\rb", "a\x00b", "a\x1bb"])
def test_control_characters_in_names_are_refused(tmp_path, bad):
    """A line end in a comment line of the batch script would begin a line of shell."""
    with pytest.raises(ConfigError, match="control character"):
        plan_of(tmp_path / bad)
    for option in ("partition", "account", "qos"):
        with pytest.raises(ConfigError, match="control character"):
            plan_of(tmp_path / "run", **{option: bad})


def test_run_names_stay_inside_runs(tmp_path):
    for name in ("../x", "/x", "a/b", "..", ".hidden", "-x", "a b", "$(x)", "a\nb"):
        done = subprocess.run(
            [sys.executable, "launch.py", "--job", "vae", "--name", name, "--local", "--dry-run"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=tiny.environment(tmp_path),
        )
        assert done.returncode in (2, 78) and "Traceback" not in done.stderr, (name, done.stderr)


def class_folders(folder: Path) -> list[str]:
    names = ["<script>alert(1)</script>", "$(touch owned)", "..hidden..", "a'b\"c", "x" * 100]
    for i, name in enumerate(names):
        try:
            (folder / name.replace("/", "\u2215")).mkdir(parents=True)
        except OSError:
            continue
        for k in range(3):
            pixels = np.random.default_rng([i, k]).integers(0, 255, (32, 32), np.uint8)
            Image.fromarray(pixels).save(folder / name.replace("/", "\u2215") / f"{i}_{k} $(touch owned) <b>.png")
    return names


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished conditional run on class folders with hostile names, and predictions of it."""
    folder = tmp_path_factory.mktemp("hostile names")
    class_folders(folder / "data")
    run = folder / "runs" / "<i>run $(touch owned)"
    run.parent.mkdir()
    flags = (
        "--data",
        str(folder / "data"),
        "--conditional",
        "--total-kimg",
        "0.016",
        "--log-kimg",
        "0.008",
        "--sample-kimg",
        "0.008",
    )
    assert tiny.train(run, *flags, packs=folder / "packs") == 0, tiny.output(run)
    return folder, run


def test_hostile_class_and_file_names_train_and_stay_names(trained):
    folder, run = trained
    assert not list(folder.rglob("owned"))
    assert {p.parent for p in folder.rglob("weights.safetensors")} == {run}
    classes = json.loads((run / "data.json").read_text())["classes"]
    assert len(classes) >= 4 and all("/" not in name and name.isprintable() for name in classes)


def test_tensorboard_tags_hold_no_markup(trained):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    _, run = trained
    tags = {
        v.tag
        for path in (run / "tensorboard").iterdir()
        for event in EventFileLoader(str(path)).Load()
        for v in event.summary.value
    }
    assert any("diversity_" in tag for tag in tags)
    assert all(re.fullmatch(r"[-\w./]+", tag, re.ASCII) for tag in tags), tags


def test_predictions_of_hostile_classes_stay_inside_their_folder(trained):
    folder, run = trained
    before = {p for p in folder.rglob("*") if run / "predictions" not in p.parents}
    for command, out in ((["generate", "--number", "6", "--run"], "generate"), (["report"], "report.html")):
        out = run / "predictions" / out
        done = forks.run(["predict.py", *command, run, "--out", out], tiny.environment(folder / "packs"))
        assert done.returncode == 0, done.stderr
    after = {p for p in folder.rglob("*") if run / "predictions" not in p.parents and p != run / "predictions"}
    assert after == before
    for page in (run / "predictions").rglob("*.html"):
        text = page.read_text()
        assert "<script" not in text and "<i>run" not in text and "&lt;i&gt;run" in text
    names = [p.name for p in (run / "predictions" / "generate").rglob("*.png")]
    assert names and all(re.fullmatch(r"[\w.-]+", name) for name in names)


# --- nobody else's files ----------------------------------------------------------------------------------------------
def test_a_new_cache_lets_nobody_in(tmp_path):
    from data.pack import ensure_pack

    ensure_pack(
        "phantom:6", resolution=16, split="all", cache_dir=tmp_path / "cache", log=lambda *_: None, progress=False
    )
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_new_runs_let_nobody_in(tmp_path):
    run = RunDir(tmp_path / "run")
    run.create()
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "what",
    [
        "",
        "checkpoints",
        "code",
        "logs/submitit",
        "config.json",
        "jobs.json",
        "job.sbatch",
        "checkpoints/000000000008.pt",
    ],
)
@pytest.mark.parametrize("how", ["mode", "owner"])
def test_a_run_that_others_may_write_to_is_refused(tmp_path, what, how):
    run = RunDir(tmp_path / "run")
    run.create()
    path = run.path / what
    if "." in path.name:
        path.write_text("{}")
    else:
        path.mkdir(parents=True, exist_ok=True)
    run.path.chmod(0o755)
    run.create()
    if how == "mode":
        path.chmod(0o777)
    elif os.getuid() == 0:
        os.chown(path, 12345, -1)
    else:
        pytest.skip("only root can give files away")
    with pytest.raises(RunDirError, match=re.escape(str(path))) as error:
        run.create()
    assert ("chmod" in str(error.value)) == (how == "mode") and "\n" not in str(error.value)


def test_modes_inside_a_closed_folder_do_not_matter(tmp_path):
    """A umask of 002 makes files that the group may write to, in a folder that it cannot enter."""
    run = RunDir(tmp_path / "run")
    run.create()
    run.config.write_text("{}")
    run.config.chmod(0o664)
    run.create()


def test_the_training_script_refuses_an_open_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    run.chmod(0o777)
    assert tiny.train(run, packs=tmp_path / "packs") == 78
    assert "everybody may write to it" in tiny.output(run) and "Traceback" not in tiny.output(run)
    assert list(run.rglob("*.pt")) == []


def test_groups_of_one_are_the_user_alone(tmp_path, monkeypatch):
    import grp
    import pwd
    from types import SimpleNamespace

    path = tmp_path / "file"
    path.write_text("")
    path.chmod(0o664)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="ann"))
    for members, name, open_ in (
        ([], "ann", False),
        (["ann"], "ann", False),
        (["bob"], "ann", True),
        ([], "students", True),
    ):
        monkeypatch.setattr(grp, "getgrgid", lambda gid, m=members, n=name: SimpleNamespace(gr_name=n, gr_mem=m))
        assert bool(others_may_replace(path)) == open_
    path.chmod(0o644)
    assert others_may_replace(path) == ""


def test_profiles_that_others_may_write_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = sites.user_file()
    path.parent.mkdir()
    path.write_text('[mine]\npartition = "gpu"\n')
    assert sites.load_sites()["mine"].partition == "gpu"
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod"):
        sites.load_sites()


def test_a_strangers_vae_is_not_taken_by_itself(tmp_path):
    """Of runs beside this one, only those that no other user could have made are taken unasked."""
    import train_diffusion
    from jobs.config import parsing, specs

    flags = [*tiny.FLAGS["train_diffusion.py"], "--run", str(tmp_path / "me")]
    c = parsing.parse_config(specs.DiffusionConfig, flags)
    folder = tmp_path / "vae"
    folder.mkdir()
    stored = {k: getattr(c, k) for k in ("data", "resolution", "channels", "crop")} | {"latent_channels": 2}
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "weights.safetensors").write_bytes(b"x")
    (folder / "DONE").touch()
    assert train_diffusion.find_vae(c) == folder / "weights.safetensors"
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="no finished VAE run"):
        train_diffusion.find_vae(c)


@pytest.mark.parametrize("state", ["fresh", "link", "stranger"])
def test_compiled_kernels_come_from_a_folder_of_ones_own(tmp_path, state):
    """jobs/env.sh names a cache beside the run; somebody else's folder of that name would be code that is run."""
    cache = tmp_path / ".cache"
    if state == "link":
        (tmp_path / "elsewhere").mkdir()
        cache.symlink_to(tmp_path / "elsewhere")
    elif state == "stranger":
        if os.getuid():
            pytest.skip("only root can give files away")
        cache.mkdir()
        os.chown(cache, 12345, -1)
    function = re.search(r"^begin\(\) \{.*?^\}", (ROOT / "jobs" / "env.sh").read_text(), re.S | re.M)[0]
    script = f'PYTHON=fake; fake() {{ echo "RUN={tmp_path}/run"; }}\n{function}\n'
    script += 'begin x; echo "${TORCHINDUCTOR_CACHE_DIR:-none}"'
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.stdout.strip() == (f"{cache}/torchinductor" if state == "fresh" else "none"), done.stderr
    if state == "fresh":
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700
