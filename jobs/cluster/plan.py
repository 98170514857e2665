"""What is to be run, where, and with what: one command line, the site and Slurm's own limits, resolved. Torch-free."""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.cluster import slurm
from jobs.cluster.options import MAX_RESTARTS, Options
from jobs.cluster.sites import Site
from jobs.config import kinds, rules, specs
from jobs.config.cards import Card, card_of
from jobs.config.parsing import fitted, local_card, parse_config, take_auto
from jobs.config.specs import ConfigError, TrainConfig


@dataclass(frozen=True)
class Plan:
    """One run and the job that is to work on it, with everything resolved."""

    job: str  # key of kinds.JOBS
    config: TrainConfig  # resolved; the job reads it from RUN/config.json
    run: Path
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
        """The training process, from the snapshot.

        On this machine several GPUs need torchrun; Slurm has its own tasks.
        """
        script = [str(self.code / kinds.JOBS[self.job].script), "--run", str(self.run)]
        if self.config.override:  # of this launch alone, so it is not in config.json
            script.append("--override")
        if self.gpus and self.config.device == "auto":  # where it was promised a GPU it never goes to a CPU by itself
            script += ["--device", "cuda"]
        launcher = []
        if self.local and self.world > 1:
            # Without the "--" torchrun takes the script's --run for an abbreviation of its own --run-path.
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.world}", "--"]
        return [sys.executable, "-u", *launcher, *script]


def make_plan(options: Options, flags: list[str], site: Site, partitions: Mapping[str, slurm.Partition] | None) -> Plan:
    """Resolve launch.py's options and the training flags of one run. Wrong flags exit with 2, wrong values raise
    ConfigError.

    `partitions` is what Slurm reports, None without Slurm: then the profile's word is taken.
    """
    job = options.job
    flags, fit = take_auto(flags)
    config = resolve(job, options.name, options.preset, flags, site)
    if options.local:
        gpus = local_gpus() if options.gpus is None else options.gpus
        plan = Plan(job, config, Path(config.run), site, True, gpus=gpus, cpus=0)
    else:
        plan = slurm_plan(job, config, options, site, partitions)
    if fit:
        named = options.name or "--run" in {flag.partition("=")[0] for flag in flags}
        more = flags_that_fit(plan, str(plan.run) if named else "", partitions)
        return make_plan(options, [*flags, *more], site, partitions)
    rules.check_world(config, plan.world)
    for name in ("run", "partition", "account", "qos", "gres"):
        if re.search(
            "[\\x00-\\x1f\\x7f\\ud800-\\udfff]", str(getattr(plan, name))
        ):  # a line end would begin a line of shell
            raise ConfigError(
                f"--{name} {str(getattr(plan, name))!r}: a control character, or no text; use letters and digits"
            )
    restarts = MAX_RESTARTS if options.max_restarts is None else options.max_restarts
    return replace(
        plan, max_restarts=restarts, shared=options.shared, after=options.after, options=options.remembered()
    )


def flags_that_fit(plan: Plan, run: str, partitions: Mapping[str, slurm.Partition] | None) -> list[str]:
    """What `--batch auto` comes to on the GPUs of a plan: of the kind that its gres names, else of the smallest in the
    partition. `run`: the run's directory, where its name does not follow from the batch."""

    def gpu() -> Card | None:
        if plan.local or not plan.gpus:
            return local_card() if plan.gpus else None
        here = [partitions[name] for name in plan.partition.split(",") if partitions and name in partitions]
        cards = [card for p in here for kind in p.gres if (card := card_of(kind))]
        return card_of(plan.gres) or min(cards, key=lambda card: card.gb, default=None)

    config = fitted(plan.config, run, plan.world, gpu)
    return ["--batch", str(config.batch), "--accumulate", str(config.accumulate)]


def resolve(job: str, name: str, preset: str, flags: list[str], site: Site) -> TrainConfig:
    """The configuration of a run, from --name and --preset of launch.py and the training flags."""
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+,-]*", name):
        raise ConfigError(f"--name {name}: use letters, digits and . _ = + , - only; --run takes a path")
    flags = ["--preset", preset, *flags] if preset else list(flags)
    if name and "--run" in {flag.partition("=")[0] for flag in flags}:
        raise ConfigError("--name and --run both name the run; leave one of them out")
    if name:
        flags += ["--run", str(specs.ROOT / "runs" / name)]
    return parse_config(kinds.job(job).config, flags, site.data_path)


def slurm_plan(
    job: str, config: TrainConfig, options: Options, site: Site, partitions: Mapping[str, slurm.Partition] | None
) -> Plan:
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
    limits = [p.max_time_s for p in known] + [slurm.parse_time(text) for text in (site.time, site.max_time) if text]
    try:
        seconds = slurm.parse_time(options.time) if options.time else min(limit for limit in limits if limit)
    except slurm.SlurmError as error:
        raise ConfigError(f"--time: {error}") from None
    if not seconds:
        raise ConfigError(
            f"--time {options.time}: give a limit, such as 4:00:00; the job requeues itself until it is done"
        )
    return Plan(
        job=job,
        config=config,
        run=Path(config.run),
        site=site,
        local=False,
        partition=partition,
        account=options.account or site.account,
        qos=options.qos or site.qos,
        minutes=math.ceil(seconds / 60),
        nodes=options.nodes or 1,
        gpus=gpus,
        cpus=options.cpus or max(min(site.cpus, cores // max(gpus, 1)), 1),
        gres=site.gres.format(gpus=gpus) if gpus else "",
        chain=not site.requeue,
    )


def local_gpus() -> int:
    """1 where this machine has a GPU that the environment does not hide, else 0: as many as a plain python would
    use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return int(bool(os.environ["CUDA_VISIBLE_DEVICES"].strip(" -1")))
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
        return int("GPU " in listed.stdout)
    return 0
