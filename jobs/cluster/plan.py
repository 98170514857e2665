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
from jobs.cluster.options import MAX_RESTARTS, Options, Resources, asked, plain_options
from jobs.cluster.sites import Site
from jobs.cluster.slurm_text import pattern_in
from jobs.config import kinds, rules, specs
from jobs.config.cards import Card, card_of
from jobs.config.parsing import fitted, local_card, parse_config, take_auto
from jobs.config.recorded import spread
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
    slurm: dict = field(default_factory=dict)  # further options of sbatch, by Slurm's names, as they were given
    second_after: int = 0  # seconds in the first partition alone
    throttle: int = 0  # of an array: so many tasks at a time; 0: all
    max_restarts: int = 20
    after: str = ""  # run directory that must be DONE before this one starts
    shared: bool = False
    chain: bool = False  # no requeue here: a successor stands ready instead
    options: dict = field(default_factory=dict)  # as typed, for `resume`
    from_shell: tuple = ()  # (flag, value, variable) that the user's shell gave
    not_taken: tuple = ()  # variables of sbatch in the user's shell that change nothing

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

    def memory_gb(self) -> float:
        """Rough memory per GPU, in the precision that the card of the gres computes in."""
        card = card_of(self.gres)
        return kinds.JOBS[self.job].memory_gb(self.config, self.world, card.capability if card else None)

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
    preset = ["--preset", options.preset] if options.preset else []
    flags, fit = take_auto(spread([*preset, *flags], kinds.job(job).config))
    config = resolve(job, options.name, "", flags, site)
    if options.local:
        gpus = local_gpus() if options.gpus is None else options.gpus
        plan = Plan(job, config, Path(config.run), site, True, gpus=gpus, cpus=0)
    else:
        plan = slurm_plan(job, config, options, site, partitions)
    if fit:
        named = options.name or "--run" in {flag.partition("=")[0] for flag in flags}
        more = flags_that_fit(plan, str(plan.run) if named else "", partitions)
        return make_plan(options, [*flags, *more], site, partitions)
    if sign := pattern_in(plan.run):
        raise ConfigError(f"{plan.run}: Slurm writes something else for {sign} in a path; move it to one without a %")
    rules.check_world(config, plan.world)
    texts = {name: str(getattr(plan, name)) for name in ("run", "partition", "account", "qos", "gres")}
    for name, text in (texts | {name: str(value) for name, value in plan.slurm.items()}).items():
        if re.search("[\\x00-\\x1f\\x7f\\ud800-\\udfff]", text):  # a line end would begin a line of shell
            raise ConfigError(f"--{name} {text!r}: a control character, or no text; use letters and digits")
    restarts = MAX_RESTARTS if options.max_restarts is None else options.max_restarts
    return replace(
        plan,
        max_restarts=restarts,
        shared=options.shared,
        after=options.after,
        options=options.remembered(),
        throttle=options.throttle or 0,
        from_shell=options.from_shell,
        not_taken=options.not_taken,
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
    want = asked(replace(options, partition=partition), site)
    known = [partitions[name] for name in partition.split(",") if name in partitions] if partitions else []
    has_gpus = any(kind.startswith(("gpu", "shard")) for p in known for kind in p.gres) if known else True
    gres, gpus = gpus_of(want, options, has_gpus)
    per_gpu = want.cpus or 1
    cores = min((p.cpus_per_node for p in known if p.cpus_per_node), default=per_gpu * max(gpus, 1))
    limits = [p.max_time_s for p in known] + [slurm.parse_time(text) for text in (site.time, site.max_time) if text]
    seconds = _seconds("time", options.time) if options.time else min(limit for limit in limits if limit)
    if not seconds:
        raise ConfigError(
            f"--time {options.time}: give a limit, such as 4:00:00; the job requeues itself until it is done"
        )
    plain = plain_options(want)
    if any(p.real_memory_mb == 1 for p in known):  # a job that asks for memory there pends for ever
        plain = {key: value for key, value in plain.items() if not key.startswith("mem")}
    return Plan(
        job=job,
        config=config,
        run=Path(config.run),
        site=site,
        local=False,
        partition=partition,
        account=want.account,
        qos=want.qos,
        minutes=math.ceil(seconds / 60),
        nodes=want.nodes or 1,
        gpus=gpus,
        cpus=options.cpus or max(min(per_gpu, cores // max(gpus, 1)), 1),
        gres=gres,
        slurm={key: value for key, value in plain.items() if key not in ("partition", "account", "qos")},
        second_after=_seconds("second-after", want.second_after) or 0 if "," in partition else 0,
        chain=not site.requeue,
    )


def gpus_of(want: Resources, options: Options, has_gpus: bool) -> tuple[str, int]:
    """(what is asked for per node, GPUs in it): --gpus fills the place in --gres or the profile's; a --gres with a
    number of its own says both."""
    gres = "" if want.gres == "none" else want.gres
    if options.gpus == 0:
        return "", 0
    if not gres or "{gpus}" in gres:
        usual = 1 if want.gpus is None else want.gpus
        gpus = options.gpus if options.gpus is not None else usual * int(bool(gres) and has_gpus)
        try:
            return (gres.format(gpus=gpus) if gpus else ""), gpus
        except (ValueError, LookupError, AttributeError):
            raise ConfigError(f"--gres {gres}: write a number or {{gpus}}, as in gpu:a100:{{gpus}}") from None
    counted = sum(n for kind, n in slurm.parse_gres(gres).items() if kind.split(":")[0] in ("gpu", "shard"))
    if options.gpus is not None and options.gpus != counted:
        raise ConfigError(f"--gres {gres} has {counted} GPUs, --gpus says {options.gpus}; leave one of them out")
    return gres, counted


def _seconds(name: str, text: str) -> int | None:
    try:
        return slurm.parse_time(text)
    except slurm.SlurmError as error:
        raise ConfigError(f"--{name}: {error}") from None


def local_gpus() -> int:
    """1 where this machine has a GPU that the environment does not hide, else 0: as many as a plain python would
    use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        first = os.environ["CUDA_VISIBLE_DEVICES"].split(",")[0].strip()  # CUDA stops at the first that is none
        return int(first not in ("", "-1", "NoDevFiles"))
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
        return int("GPU " in listed.stdout)
    return 0
