"""`launch.py doctor`: checks of this machine, the environment and the cluster. Torch-free."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from data.files import plain, say
from jobs.cluster import choose, slurm, terminal, wheels
from jobs.cluster.choose import verb_parser
from jobs.cluster.preflight import SHARED_FILESYSTEMS, Check, fail, filesystem, ok, quota_left_gb, torch_cuda, warn
from jobs.cluster.sites import choose_site, user_file
from jobs.cluster.slurm_text import pattern_in
from jobs.config import specs
from jobs.run.rundir import git_state
from jobs.run.stopping import BAD, DONE


def doctor_command(argv: list[str]) -> int:
    """`launch.py doctor`."""
    parser = verb_parser("doctor", "Check this machine, the environment and the cluster.")
    parser.add_argument(
        "--site", default="", metavar="PROFILE", help="profile of jobs/sites.toml (default: recognised)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list, for scripts")
    options = parser.parse_args(argv)
    checks = check_machine(options.site, choose.RUNS)
    if options.json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        terminal.say_checks(checks)
        failed = sum(check.level == "fail" for check in checks)
        say(f"\n{failed} problem{'s' if failed > 1 else ''} to fix." if failed else "\nAll well.")
    return BAD if any(check.level == "fail" for check in checks) else DONE


def check_machine(wanted_site: str, runs: Path) -> list[Check]:
    """For `launch.py doctor`: what holds for every run. Nothing is queued."""
    found = [ok(f"Python {sys.version.split()[0]} at {sys.executable}")]
    found += check_versions()
    partitions = None
    if slurm.available():
        partitions = slurm.partitions()
        up = [p.name + ("*" if p.default else "") for p in partitions.values() if p.up]
        found.append(ok(f"Slurm answers; partitions: {', '.join(up)}"))
    elif shutil.which("sbatch") and (os.environ.get("SLURM_CONF") or Path("/etc/slurm/slurm.conf").exists()):
        found.append(
            fail(
                "Slurm is installed and its controller does not answer",
                "try again in some minutes; scontrol ping says more",
            )
        )
    else:
        found.append(warn("no Slurm on this machine", "use a login node of the cluster, or --local"))
    site = choose_site(wanted_site, partitions, local=partitions is None)
    own = f", with changes from {user_file()}" if user_file().is_file() else f"; your own changes go into {user_file()}"
    found.append(ok(f"site profile {site.name}: {site.about}{own}"))
    for key, path in site.data.items():
        there = os.access(os.path.expandvars(path), os.R_OK)
        found.append(
            ok(f"data {key}: {path}")
            if there
            else warn(f"data {key}: {path} is not there or not yours to read", "give --data")
        )
    place = next(p for p in [runs, *runs.parents] if p.exists())
    kind = filesystem(place)
    if not os.access(place, os.W_OK):
        found.append(fail(f"{place} cannot be written by you", "clone the repository where you can write"))
    else:
        shared = "" if kind in SHARED_FILESYSTEMS or partitions is None else "; make sure that the compute nodes see it"
        found.append(
            ok(f"runs go to {runs}: {shutil.disk_usage(place).free / 1e9:.0f} GB free on {kind or 'its disk'}{shared}")
        )
    if sign := pattern_in(runs):
        found.append(fail(f"{runs}: Slurm writes something else for {sign} in a path", "move it to one without a %"))
    left = quota_left_gb(place)
    if left is not None:
        found.append(
            ok(f"your quota leaves {left:.1f} GB")
            if left > 5
            else warn(f"your quota leaves only {left:.1f} GB", "delete old runs")
        )
    crlf = [path.name for path in (specs.ROOT / "jobs").glob("*.sh") if b"\r" in path.read_bytes()]
    if crlf:
        found.append(fail(f"Windows line ends in {', '.join(crlf)}", r"sed -i 's/\r$//' jobs/*.sh"))
    if cuda := torch_cuda():
        kinds = [kind for p in (partitions or {}).values() for kind in p.gres]
        found += [warn(text, fix) for _, text, fix in wheels.check_cards(kinds, cuda)]  # it may never be asked for
    state = git_state(specs.ROOT)
    if state["git_commit"]:
        found.append(ok(f"code at commit {state['git_commit'][:10]}{', with changes' if state['git_dirty'] else ''}"))
    return found


# Package -> the module of it that is used. What is vouched for here is imported: a package can be there and be broken,
# as a TensorBoard before 2.21 is under a setuptools without pkg_resources.
PACKAGES = {
    "torch": "torch", "submitit": "submitit", "tyro": "tyro", "safetensors": "safetensors", "numpy": "numpy",
    "pillow": "PIL.Image", "tensorboard": "tensorboard.main", "matplotlib": "matplotlib.figure",
}  # fmt: skip
IMPORT_S = 300  # torch from a cold network disk


def check_versions() -> list[Check]:
    """Whether the packages are there and can be imported, and which versions of them."""
    found, missing = [], []
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if name == "torch":
            cuda = torch_cuda()
            found.append(
                ok(f"torch {version}, built for CUDA {cuda}")
                if cuda
                else warn(f"torch {version} is built without CUDA", "fine for CPUs")
            )
    if missing:
        found.append(
            fail(f"packages are missing: {', '.join(missing)}", f"{sys.executable} -m pip install -r requirements.txt")
        )
    return found + check_imports([name for name in PACKAGES if name not in missing])


def check_imports(names: list[str]) -> list[Check]:
    """Whether these packages can be imported, each in a Python of its own that this one only waits for."""
    again = f"{sys.executable} -m pip install --upgrade -r requirements.txt"
    started = {}
    for name in names:
        command = [sys.executable, "-c", f"import {PACKAGES[name]}"]
        started[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    found = []
    for name, process in started.items():
        try:
            words = process.communicate(timeout=IMPORT_S)[1].strip().splitlines()
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            found.append(warn(f"{name} is not imported after {IMPORT_S} s", "the disk of this environment is slow"))
            continue
        if process.returncode:
            why = plain(words[-1])[:200] if words else f"exit code {process.returncode}"
            found.append(fail(f"{name} is installed and cannot be imported: {why}", again))
    return found
