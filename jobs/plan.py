"""What is to be run, where, and with what: one command line, the site and Slurm's own limits, resolved. Torch-free."""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs import slurm, specs
from jobs.sites import Site
from jobs.specs import ConfigError

# Fields of the configs that hold paths. They are made absolute at submit: the job runs in another folder.
PATH_FIELDS = ("data", "init_from", "vae", "perceptual_file")


@dataclass(frozen=True)
class Plan:
    """One run and the job that is to work on it, with everything resolved."""

    job: str  # key of specs.JOBS
    config: object  # the resolved config dataclass
    run: Path
    flags: tuple[str, ...]  # training flags without --run, their paths absolute
    site: Site  # with the partition's values laid over it
    local: bool
    partition: str = ""
    account: str = ""
    qos: str = ""
    minutes: int = 240
    nodes: int = 1
    gpus: int = 1  # per node
    cpus: int = 4  # per task
    gres: str = ""
    max_restarts: int = 20
    after: str = ""  # run directory that must be DONE before this one starts
    shared: bool = False
    chain: bool = False  # no requeue here: a successor stands ready instead
    options: dict = field(default_factory=dict)  # as typed, for `resume`

    @property
    def tasks(self) -> int:
        """Tasks per node: one per GPU."""
        return max(self.gpus, 1)

    @property
    def world(self) -> int:
        """Processes over all nodes."""
        return self.nodes * self.tasks

    @property
    def code(self) -> Path:
        """Snapshot of the code that the job runs."""
        return self.run / "code"

    def command(self) -> list[str]:
        """The training process, from the snapshot. On this machine several GPUs need torchrun; Slurm has its own tasks."""
        script = [str(self.code / specs.JOBS[self.job].script), "--run", str(self.run), *self.flags]
        launcher = []
        if self.local and self.world > 1:
            # Without the "--" torchrun takes the script's --run for an abbreviation of its own --run-path.
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.world}", "--"]
        return [sys.executable, "-u", *launcher, *script]


def absolute_flags(flags: list[str], config) -> tuple[str, ...]:
    """The flags as typed, with --run taken out and every path replaced by the absolute one of the resolved config."""
    taken = {f"--{name.replace('_', '-')}": getattr(config, name, "") for name in PATH_FIELDS} | {"--run": ""}
    kept, skip = [], False
    for flag in flags:
        name, has_value, _ = flag.replace("_", "-").partition("=") if flag.startswith("--") else (flag, "", "")
        if skip:
            skip = False
        elif name in taken:
            skip = not has_value
        else:
            kept.append(flag)
    for name, value in taken.items():
        if value:
            kept += [name, value]
    return tuple(kept)


def make_plan(options, flags: list[str], site: Site, partitions: dict[str, slurm.Partition] | None) -> Plan:
    """Resolve launch.py's options and the training flags of one run. Wrong flags exit with 2, wrong values raise ConfigError.

    `partitions` is what Slurm reports, None without Slurm: then the profile's word is taken.
    """
    job = options.job
    if job not in specs.JOBS:
        raise ConfigError(f"--job {job}: there is no such job; choose from {', '.join(specs.JOBS)}")
    config, flags = resolve(options, flags, site)
    if options.local:
        gpus = local_gpus() if options.gpus is None else options.gpus
        plan = Plan(job, config, Path(config.run), absolute_flags(flags, config), site, True, gpus=gpus, cpus=0)
    else:
        plan = replace(slurm_plan(options, site, partitions), job=job, config=config, run=Path(config.run),
                       flags=absolute_flags(flags, config))  # fmt: skip
    specs.check_world(config, plan.world)
    for name in ("run", "partition", "account", "qos", "gres"):
        if re.search(
            "[\\x00-\\x1f\\x7f\\ud800-\\udfff]", str(getattr(plan, name))
        ):  # a line end would begin a line of shell
            raise ConfigError(
                f"--{name} {str(getattr(plan, name))!r}: a control character, or no text; use letters and digits"
            )
    typed = {name: getattr(options, name) for name in REMEMBERED if is_given(getattr(options, name))}
    return replace(plan, max_restarts=options.max_restarts, shared=options.shared, after=options.after, options=typed)


# Options of launch.py that `resume` uses again.
REMEMBERED = "partition account qos time nodes gpus cpus site shared local max_restarts".split()


def is_given(value) -> bool:
    """Whether a person gave this option of launch.py; 0, as in --gpus 0, is a value."""
    return value is not None and value is not False and value != ""


def resolve(options, flags: list[str], site: Site) -> tuple[object, list[str]]:
    """The config that the job's training script will come to, and the flags that lead it there, --preset among them."""
    cls = specs.JOBS[options.job].config
    flags = list(flags)
    named = str(specs.ROOT / "runs" / options.name) if options.name else ""
    if named and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+,-]*", options.name)):
        raise ConfigError(f"--name {options.name}: use letters, digits and . _ = + , - only; --run takes a path")
    if named and flag_value(flags, "run"):
        raise ConfigError("--name and --run both name the run; leave one of them out")
    if named:
        flags += ["--run", named]
    run = flag_value(flags, "run")
    preset = options.preset or flag_value(flags, "preset")
    exists = run is not None and Path(run, "config.json").expanduser().is_file()
    if not preset and not exists:
        preset = specs.DEFAULT_PRESET[cls]
    if preset and flag_value(flags, "preset") != preset:
        flags = ["--preset", preset, *flags]  # said aloud, so that the job need not guess what the default was
    named_data = flag_value(flags, "data") or specs.PRESETS[cls].get(preset or "", {}).get("data")
    if preset and not named_data and (path := site.data_path(preset)):
        flags += ["--data", path]
    return specs.parse(cls, flags), flags


def flag_value(flags: list[str], name: str) -> str | None:
    """Value of `--name VALUE` or `--name=VALUE`, the last one; None if it is not there."""
    return specs._flag(flags, name)


def slurm_plan(options, site: Site, partitions: dict[str, slurm.Partition] | None) -> Plan:
    """The resources of a Slurm job: options, over the profile's values for the partition, within what Slurm reports."""
    default = next((name for name, p in (partitions or {}).items() if p.default), "")
    partition = options.partition or site.partition or default
    if not partition:
        raise ConfigError("no partition: give --partition NAME (sinfo lists them)")
    site = site.on(partition)
    known = [partitions[name] for name in partition.split(",") if name in partitions] if partitions else []
    has_gpus = any(kind.startswith(("gpu", "shard")) for p in known for kind in p.gres) if known else True
    gpus = options.gpus if options.gpus is not None else int(bool(site.gres) and has_gpus)
    cores = min((p.cpus_per_node for p in known if p.cpus_per_node), default=site.cpus * max(gpus, 1))
    limits = [p.max_time_s for p in known if p.max_time_s] + (
        [slurm.parse_time(site.max_time)] if site.max_time else []
    )
    try:
        seconds = slurm.parse_time(options.time) if options.time else min([slurm.parse_time(site.time), *limits])
    except slurm.SlurmError as error:
        raise ConfigError(f"--time: {error}") from None
    if not seconds:
        raise ConfigError(
            f"--time {options.time}: give a limit, such as 4:00:00; the job requeues itself until it is done"
        )
    return Plan(
        job="", config=None, run=Path(), flags=(), site=site, local=False, partition=partition, account=options.account or site.account,
        qos=options.qos or site.qos, minutes=math.ceil(seconds / 60), nodes=options.nodes or 1, gpus=gpus,
        cpus=options.cpus or max(min(site.cpus, cores // max(gpus, 1)), 1), gres=site.gres.format(gpus=gpus) if gpus else "",
        chain=not site.requeue,
    )  # fmt: skip


def local_gpus() -> int:
    """1 where this machine has a GPU that the environment does not hide, else 0: as many as a plain python would use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return int(bool(os.environ["CUDA_VISIBLE_DEVICES"].strip(" -1")))
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
        return int("GPU " in listed.stdout)
    return 0
