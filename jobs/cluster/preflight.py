"""What is checked before a job is queued: partition, limits, GPUs, data, run folder, flags, packages. Torch-free.

Each check gives lines of ok, warn or fail; a fail comes with its fix, and with one of them nothing is queued.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.files import ARCHIVES, PACK, PICTURES, VOLUMES, is_phantom
from jobs.cluster import notify, quota, sbatch, slurm, wheels
from jobs.cluster.plan import Plan
from jobs.cluster.slurm import Partition, format_time
from jobs.cluster.submit import untracked_code
from jobs.config import kinds, rules, sizes, specs
from jobs.config.cards import card_of
from jobs.config.specs import ConfigError, DiffusionConfig
from jobs.run import budget
from jobs.run.resume import compare_with_run
from jobs.run.rundir import RunDir
from jobs.run.states import RunDirError
from jobs.run.vae import copied_vae, find_vae

SHARED_FILESYSTEMS = set(
    "nfs nfs4 lustre gpfs beegfs ceph cephfs cifs smb3 panfs pvfs2 orangefs afs 9p virtiofs glusterfs wekafs".split()
)
MEMORY_FILESYSTEMS = {"tmpfs", "ramfs"}
NODE_LOCAL = ("/tmp", "/var/tmp", "/scratch", "/dev/shm", "/run")
SLACK_GB = 0.5  # samples, logs, TensorBoard
STARTUP_S = 120  # imports, loading, the first step: what a job needs besides the margin in which it saves


@dataclass(frozen=True)
class Check:
    """One line of the report. level: ok, warn or fail; `fix` says what to do, in a second sentence."""

    level: str
    text: str
    fix: str = ""


def ok(text: str) -> Check:
    """A check that passed."""
    return Check("ok", text)


def warn(text: str, fix: str = "") -> Check:
    """A check that a person should read; the job is queued all the same."""
    return Check("warn", text, fix)


def fail(text: str, fix: str) -> Check:
    """A check that keeps the job from being queued, with the way out."""
    return Check("fail", text, fix)


def check_plan(plan: Plan, partitions: Mapping[str, Partition] | None, script: str = "") -> list[Check]:
    """All checks of one plan.

    `partitions` is None where there is no Slurm; `script` is tried with sbatch --test-only.
    """
    found = []
    if not plan.local:
        found += check_resources(plan, partitions)
        if partitions is not None and script and not any(c.level == "fail" for c in found):
            found += check_with_slurm(script)
    found += check_promises(plan) + check_data(plan) + check_vae(plan)
    found += check_run_folder(plan, partitions)
    found += check_config(plan) + check_memory(plan) + check_code(plan) + check_packages(plan, partitions)
    return found


def check_promises(plan: Plan) -> list[Check]:
    """Whether the run has GPU hours left, and whoever is to hear of its end can be told."""
    found, most = [], plan.options.get("max_gpu_hours")
    if most and (used := budget.used_hours(plan.run)) >= most:
        found.append(fail(f"{used:.3g} of the run's {most:g} GPU hours are used up", "--max-gpu-hours with more"))
    whom = plan.options.get("notify")
    if whom and (problem := notify.problem_of(whom)):
        found.append(fail(problem, "--notify you@example.org, or an entry in that file"))
    return found


# --- what Slurm offers ------------------------------------------------------------------------------------------------
def check_resources(plan: Plan, partitions: Mapping[str, Partition] | None) -> list[Check]:
    """Time, nodes and GPUs that Slurm could meet; `partitions` is None where there is no Slurm."""
    minimum = plan.site.margin + STARTUP_S
    found = check_shell(plan)
    if plan.minutes * 60 < minimum:
        found.append(
            fail(
                f"--time {format_time(plan.minutes * 60)} is too short: the job is told to save {plan.site.margin} s "
                "before its end",
                f"ask for {format_time(-(-minimum // 60) * 60)} or more (4:00 is four minutes, 4:00:00 four hours)",
            )
        )
    if partitions is None:
        return [*found, warn("no Slurm here: partition, limits and GPUs are taken from the profile, unchecked")]
    for name in plan.partition.split(","):
        found += check_partition(plan, name, partitions)
    return found


def check_shell(plan: Plan) -> list[Check]:
    """What sbatch's variables in the user's shell come to: a default of launch.py, or nothing."""
    found = [ok(f"{flag} {value}, from {variable} of your shell") for flag, value, variable in plan.from_shell]
    if plan.not_taken:
        found.append(
            warn(
                f"set in your shell and not passed on to the job: {', '.join(plan.not_taken)}",
                "--slurm KEY=VALUE passes an option of sbatch on",
            )
        )
    return found


def check_partition(plan: Plan, name: str, partitions: Mapping[str, Partition]) -> list[Check]:
    """Whether the partition exists, is up, and has what the plan asks for."""
    if name not in partitions:
        near = difflib.get_close_matches(name, partitions, n=1)
        return [
            fail(
                f"partition {name} does not exist",
                f"{f'did you mean {near[0]}? ' if near else ''}there are {', '.join(partitions)}",
            )
        ]
    p = partitions[name]
    if not p.up:
        return [
            fail(
                f"partition {name} is down",
                f"use another: {', '.join(q.name for q in partitions.values() if q.up) or 'none is up'}",
            )
        ]
    gres = ", ".join(f"{kind}:{count}" for kind, count in p.gres.items()) or "no GPU"
    found = [
        ok(
            f"partition {name}: up, {p.nodes} nodes of {p.cpus_per_node} cores and {gres}, at most "
            f"{format_time(p.max_time_s)}"
        )
    ]
    limit = min([t for t in (p.max_time_s, slurm.parse_time(plan.site.max_time)) if t], default=None)
    if limit and plan.minutes * 60 > limit:
        found.append(
            fail(
                f"--time {format_time(plan.minutes * 60)} is over the limit of {name}",
                f"--time {format_time(limit)}; the job requeues itself until the run is done",
            )
        )
    if p.allow_accounts is not None and plan.account not in p.allow_accounts:
        given = f"account {plan.account} may not use {name}" if plan.account else f"{name} needs an account"
        found.append(fail(given, f"--account {' or --account '.join(p.allow_accounts)}"))
    needed = plan.site.partitions.get(name, {}).get("account")
    if needed and plan.account != needed:
        found.append(
            warn(f"{name} usually needs --account {needed}", "without it a job there pends for ever (PartitionConfig)")
        )
    if plan.nodes > p.nodes:
        found.append(fail(f"--nodes {plan.nodes}: {name} has {p.nodes}", f"--nodes {p.nodes}"))
    if plan.cpus * plan.tasks > p.cpus_per_node > 0:
        found.append(
            fail(
                f"{plan.tasks} x {plan.cpus} cores on one node: those of {name} have {p.cpus_per_node}",
                f"--cpus {max(p.cpus_per_node // plan.tasks, 1)}",
            )
        )
    return found + check_gres(plan, p) + check_mem(plan, p)


def check_mem(plan: Plan, p: Partition) -> list[Check]:
    """The memory that is asked for per node, against that of the partition's nodes."""
    if p.real_memory_mb == 1:
        return [ok(f"nodes of {p.name} report RealMemory=1, so no --mem is sent (it would pend for ever)")]
    wanted = slurm.parse_memory(str(plan.slurm.get("mem", "0")))
    if wanted is None:
        return [fail(f"--mem {plan.slurm['mem']} is no size", "write it as in --mem 64G")]
    if wanted > p.real_memory_mb > 0:
        return [
            fail(
                f"--mem {plan.slurm['mem']}: the nodes of {p.name} have {p.real_memory_mb} MB",
                f"--mem {p.real_memory_mb}M",
            )
        ]
    return []


def check_gres(plan: Plan, p: Partition) -> list[Check]:
    """The GPUs that are asked for, per node, against those that the partition's nodes have."""
    has_gpu = any(kind.startswith(("gpu", "shard")) for kind in p.gres)
    if not plan.gres:
        if has_gpu:
            return [warn(f"{p.name} has GPUs and none is asked for: the run will train on the CPU", "--gpus 1")]
        return []
    if not has_gpu:
        return [
            fail(
                f"{p.name} has no GPUs, but {plan.gres} is asked for",
                "--gpus 0 to train on its CPUs, or another --partition",
            )
        ]
    for kind, count in slurm.parse_gres(plan.gres).items():
        there = sum(n for name, n in p.gres.items() if name == kind or name.startswith(kind + ":"))
        same = [name for name in p.gres if name.split(":")[0] == kind.split(":")[0]]
        if not there:
            return [
                fail(f"{p.name} has no {kind}", f"it has {', '.join(same or p.gres)}; set gres in the site profile")
            ]
        if count > there:
            return [
                fail(
                    f"{count} x {kind} per node: the nodes of {p.name} have {there}",
                    f"--gpus {there}{f' --nodes {-(-count // there)}' if p.nodes > 1 else ''}",
                )
            ]
    return []


def check_with_slurm(script: str) -> list[Check]:
    """What `sbatch --test-only` says of the script."""
    try:
        accepted, words = slurm.test_only(script)
    except slurm.SlurmError as error:
        return [warn(f"sbatch --test-only did not answer: {error}")]
    if not accepted and "node configuration is not available" in words and "can not be satisfied" not in words:
        # The sizes have been checked above against what the nodes have, so it is the nodes that are away.
        return [warn("no node that fits is in service just now; the job waits until one is")]
    if not accepted:
        words = words.removeprefix("sbatch --test-only: ").removeprefix("allocation failure: ")
        return [fail(f"Slurm would refuse it: {words}", sbatch.way_out(words) or "change the option that it names")]
    starts = re.search(r"to start at (\S+)", words)
    return [ok(f"Slurm accepts it{f', earliest start {starts[1].replace(chr(84), chr(32))}' if starts else ''}")]


# --- the run's data, folder and flags ---------------------------------------------------------------------------------
def check_data(plan: Plan) -> list[Check]:
    """Whether the data are there, can be read and hold images; nothing is decoded."""
    data = getattr(plan.config, "data", "")
    if is_phantom(data):
        return [ok(f"data {data}: drawn procedurally")]
    path = Path(data)
    if not path.exists():
        parent = next((p for p in path.parents if p.exists()), Path("/"))
        return [fail(f"data {path} does not exist ({parent} does)", "give --data the right path, or --data phantom")]
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        return [fail(f"data {path} cannot be read by you", "ask its owner for access, or copy it")]
    if path.is_dir() and not any_image(path):
        return [
            fail(
                f"data {path} holds no images",
                "give --data a folder of slices (ADNI, OASIS, class folders, NIfTI) or a .pack",
            )
        ]
    table = getattr(plan.config, "table", "")
    if table and not os.access(table, os.R_OK):
        return [fail(f"--table {table} cannot be read", "give a .csv or .tsv with a line of column names")]
    return [ok(f"data {path}: readable")]


def check_vae(plan: Plan) -> list[Check]:
    """A latent-diffusion run needs a VAE: the one that it has copied already, the one named, which may still be in
    training where this run waits for it, or a finished one beside the run that was trained on the same data."""
    config = plan.config
    if not isinstance(config, DiffusionConfig) or config.space != "latent":
        return []
    if copied_vae(plan.run).is_file():
        return [ok("VAE: copied into the run when it began")]
    if config.vae and config.vae == plan.after:
        return [ok(f"VAE {Path(config.vae).name}")]
    try:
        weights = find_vae(config)
    except ConfigError as error:
        text, _, fix = str(error).rpartition("; ")
        return [fail(text, fix)]
    name = weights.parent.name if not Path(config.vae).is_file() or not config.vae else weights.name
    if not weights.is_file():
        return [fail(f"--vae {config.vae}: no weights there", "name a VAE run that is done, or use --job pipeline")]
    if config.vae and not Path(config.vae).is_file() and not weights.with_name("DONE").is_file():
        return [
            warn(
                f"VAE {name} is not finished; its weights are taken as they are when the job starts",
                f"--after {name} waits for it",
            )
        ]
    return [ok(f"VAE {name}" if config.vae else f"VAE {name}, the newest finished one that fits")]


def any_image(folder: Path, most: int = 5000) -> bool:
    """Whether an image turns up among the first files; a folder that large without one gets the benefit of the
    doubt."""
    seen = 0
    for _, _, files in os.walk(folder, followlinks=True):
        for name in files:
            seen += 1
            if name.lower().endswith((*PICTURES, *VOLUMES, *ARCHIVES, PACK)) or "." not in name or seen > most:
                return True
    return False


def check_run_folder(plan: Plan, partitions: Mapping[str, Partition] | None) -> list[Check]:
    """The run's place: writable, seen by the nodes, with room for the checkpoints."""
    there = next(p for p in [plan.run, *plan.run.parents] if p.exists())
    if not there.is_dir():
        return [fail(f"{there} is a file, so {plan.run} cannot be made", "use another --name or --run")]
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".brain-check-") as file:
            file.write(b"0" * 65536)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "delete old runs" if full else "use --run, or clone the repository, where you may write"
        return [fail(f"{there} cannot be written ({error.strerror})", fix)]
    found = [] if plan.local else check_shared(plan, there, partitions)
    job = kinds.JOBS[plan.job]
    need = sizes.disk_gb(plan.config, job.checkpoint_gb(plan.config)) + SLACK_GB
    free = shutil.disk_usage(there).free / 1e9
    left = quota_left_gb(there)
    room = free if left is None else min(free, left)
    if room < need:
        why = "your quota leaves" if left is not None and left < free else "the disk has"
        found.append(
            fail(
                f"{there}: {why} {room:.1f} GB, the run needs about {need:.1f} GB",
                "delete old runs, --keep 1, or --run on a larger disk",
            )
        )
    else:
        found.append(ok(f"run {plan.run}: writable, {room:.0f} GB free, about {need:.1f} GB needed"))
    return found


def check_shared(plan: Plan, there: Path, partitions: Mapping[str, Partition] | None) -> list[Check]:
    """A run folder that only the login node sees would fail on the compute node, without a log."""
    if partitions is None:  # a dry run elsewhere: the path is looked at where it will be used
        return []
    kind = filesystem(there)
    real = there.resolve()
    scratch = next((s for s in NODE_LOCAL if real.is_relative_to(s)), "")
    advice = "use --run on shared storage, such as your home"
    if kind in SHARED_FILESYSTEMS or kind.startswith("fuse."):
        return []
    alone = nodes_are_here()
    if scratch and not (alone and specs.ROOT.is_relative_to(scratch)):
        return [fail(f"{there} is under {scratch}, which each node has for itself", advice)]
    if kind in MEMORY_FILESYSTEMS and not alone:
        return [fail(f"{there} is in this machine's memory ({kind}); the compute nodes do not see it", advice)]
    if partitions is not None and not alone:
        return [
            warn(
                f"{there} is on a local disk ({kind}) of this machine", f"if the compute nodes do not see it, {advice}"
            )
        ]
    return []


def filesystem(path: Path) -> str:
    """Type of the file system that holds `path`, from /proc/mounts; '' where that is not to be had."""
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, found, *_ = line.split()
            mount = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), mount)
            if path.resolve().is_relative_to(mount) and len(mount) >= len(best):
                best, kind = mount, found
    return kind


def nodes_are_here() -> bool:
    """Whether every compute node is this machine itself: a single workstation with Slurm, or a test cluster."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["scontrol", "show", "node", "-o"]
        text = subprocess.run(command, capture_output=True, timeout=10).stdout.decode(errors="replace")
        addresses = re.findall(r"NodeAddr=(\S+)", text)
        return bool(addresses) and all(
            a.startswith("127.") or a in ("localhost", os.uname().nodename) for a in addresses
        )
    return False


def quota_left_gb(folder: Path) -> float | None:
    """What the user's disk quota leaves on the file system of `folder`; None where there is none to ask for."""
    room = quota.used_and_limit_gb(folder)
    return None if room is None else max(room[1] - room[0], 0)


def check_memory(plan: Plan) -> list[Check]:
    """Whether a step fits into the card that the gres names."""
    card, memory = card_of(plan.gres), plan.memory_gb()
    if card is None or sizes.with_margin(memory) <= card.gb:
        return []
    text = f"a step needs about {memory:.0f} GB, and a {card.name} may have {card.gb:g} GB"
    return [warn(text, rules.less_memory(plan.config, plan.world))]


def check_config(plan: Plan) -> list[Check]:
    """The flags against those that the run was started with, as the training script will do on the node."""
    run, config = RunDir(plan.run), plan.config
    memory = plan.memory_gb()
    try:
        stored = run.read_config()
    except RunDirError as error:
        return [fail(str(error), "")]
    if stored is None:
        return [
            ok(f"flags: a new run of {config.total_kimg:g} kimg at batch {config.batch}, about {memory:.0f} GB per GPU")
        ]
    try:
        changed = compare_with_run(run, config)
    except ConfigError as error:
        text, _, fix = str(error).partition("; ")
        return [fail(text, fix.replace("--run", "--name"))]
    if changed:
        return [warn(f"flags that differ from the run's are taken over (--override): {changed}")]
    return [ok(f"flags: resumes at {run.newest_checkpoint() / 1000:g} of {config.total_kimg:g} kimg")]


# --- code and packages ------------------------------------------------------------------------------------------------
def check_code(plan: Plan) -> list[Check]:
    """Whether the scripts are there as Slurm and the shell take them."""
    script = specs.ROOT / kinds.JOBS[plan.job].script
    if not script.is_file():
        return [fail(f"{script} is missing", "git checkout the repository again")]
    found = []
    shell = [path for path in (specs.ROOT / "jobs").glob("*.sh") if b"\r" in path.read_bytes()]
    if shell:
        names = " ".join(f"jobs/{path.name}" for path in sorted(shell))
        found.append(fail(f"Windows line ends (CRLF) in {names}: no shell can run it", f"sed -i 's/\\r$//' {names}"))
    if new := untracked_code(specs.ROOT):
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        found.append(
            warn(
                f"not in git, so not in the snapshot that the job runs: {', '.join(new[:3])}{more}",
                "git add them if it needs them",
            )
        )
    return found


def check_packages(plan: Plan, partitions: Mapping[str, Partition] | None = None) -> list[Check]:
    """The interpreter that runs launch.py is the one that the job uses. Nothing is imported: torch takes seconds."""
    found = []
    missing = [
        name
        for name in "torch submitit tyro safetensors numpy PIL tensorboard".split()
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        return [
            fail(f"{sys.executable} lacks {', '.join(missing)}", f"{sys.executable} -m pip install -r requirements.txt")
        ]
    python = Path(sys.executable)
    if not plan.local and filesystem(python.parent) in MEMORY_FILESYSTEMS:
        found.append(
            fail(
                f"{python} is in this machine's memory; the compute nodes do not see it", "make .venv on shared storage"
            )
        )
    cuda = torch_cuda()
    if plan.gpus and not cuda:
        # Where this machine is the only node, its owner knows what he has.
        level = warn if plan.local or nodes_are_here() else fail
        found.append(
            level(
                "GPUs are asked for, but the installed torch is built without CUDA",
                "pip install torch from pytorch.org's CUDA index, or --gpus 0 to train on CPUs",
            )
        )
    elif plan.gpus:
        found.append(ok(f"torch is built for CUDA {cuda}"))
        here = [partitions[name] for name in plan.partition.split(",") if partitions and name in partitions]
        named = [plan.gres] if card_of(plan.gres) else [kind for p in here for kind in p.gres]
        sure = len({card_of(kind) for kind in named}) < 2  # of several kinds the job may get the one that fits
        found += [Check(level if sure else "warn", *row) for level, *row in wheels.check_cards(named, cuda)]
    return found


def torch_cuda() -> str:
    """CUDA version that torch was built for, read from its version.py; '' for a CPU build or none."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        with contextlib.suppress(OSError):
            found = re.search(
                r"^(?:cuda|hip)(?:: [^=]*)? = ['\"]([^'\"]+)['\"]", Path(folder, "version.py").read_text(), re.M
            )
            return found[1] if found else ""
    return ""
