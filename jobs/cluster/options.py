"""The one table of options: launch.py's flags, what a profile may say, and how Slurm calls and shows each. Torch-free.

A field of `Resources` is a flag of launch.py and of resume, a key of a profile in sites.toml, an entry of `options` in
jobs.json and an option of sbatch. Its default in the user's shell, and the field of `scontrol show job` from which a
successor and a resume read it back, stand beside it.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from jobs.config import kinds
from jobs.config.specs import ConfigError

MAX_RESTARTS = 20


@dataclass(frozen=True)
class Row:
    """One option. `name` is that of its field."""

    kind: type  # str, int, float, bool; tuple: it may be repeated
    help: str
    group: str = ""  # what, where, how: where --help shows it, '' is no flag of its own
    metavar: str | None = None
    resume: bool = False  # a flag of resume too
    kept: bool = False  # in jobs.json, so that resume uses it again
    local: bool = True  # means something without Slurm
    least: int | None = None
    sbatch: str = ""  # Slurm's name of it
    plain: bool = False  # handed to sbatch as it was given; else the plan works it out
    shown: str = ""  # its field of `scontrol show job`
    variable: str = ""  # of the user's shell, from which sbatch would take it: it is the default
    name: str = ""

    @property
    def flag(self) -> str:
        """As it is typed."""
        return f"--{self.name.replace('_', '-')}"


# The training flags have one of this name as well.
DATA_TOO = "data to leave out stand behind a -- of their own: -- --exclude GLOB"
EMPTY: dict[type, Any] = {str: "", int: None, float: None, bool: False, tuple: ()}


def row(kind: type, help: str, **how) -> Any:
    """A field of the table; it is empty where it is not given."""
    return field(default=EMPTY[kind], metadata={"row": Row(kind, help, **how)})


def _slurm(kind: type, sbatch: str, help: str, **how) -> Any:
    return row(kind, help, group="where", resume=True, kept=True, sbatch=sbatch, **{"local": False} | how)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What is asked of Slurm. None, '' and () mean: not given."""

    partition: str = _slurm(
        str, "partition", "Slurm partition; of a comma list the one that is free first", metavar="P", plain=True,
        shown="Partition", variable="SBATCH_PARTITION")  # fmt: skip
    second_after: str = _slurm(
        str, "", "with a list of partitions: wait so long in the first one before the others are tried too",
        metavar="H:MM:SS")  # fmt: skip
    gpus: int | None = _slurm(
        int, "", "GPUs per node (default 1; 0 for a CPU partition)", metavar="N", least=0, local=True,
        variable="SBATCH_GPUS_PER_NODE")  # fmt: skip
    gres: str = _slurm(
        str, "gres", "what to ask for per node in place of gpu:N, such as gpu:a100:{gpus}; none asks for nothing",
        metavar="G", shown="TresPerNode", variable="SBATCH_GRES")  # fmt: skip
    nodes: int | None = _slurm(int, "nodes", "nodes (default 1)", metavar="N", least=1, shown="NumNodes")
    cpus: int | None = _slurm(int, "cpus-per-task", "CPU cores per GPU", metavar="N", least=1, shown="CPUs/Task")
    mem: str = _slurm(
        str, "mem", "memory per node, such as 64G (default: the partition's)", metavar="SIZE", plain=True,
        shown="MinMemoryNode", variable="SBATCH_MEM_PER_NODE")  # fmt: skip
    time: str = _slurm(
        str, "time", "limit of one attempt; the job requeues itself until the run is done", metavar="H:MM:SS",
        shown="TimeLimit", variable="SBATCH_TIMELIMIT")  # fmt: skip
    account: str = _slurm(
        str, "account", "Slurm account", metavar="A", plain=True, shown="Account",
        variable="SBATCH_ACCOUNT")  # fmt: skip
    qos: str = _slurm(
        str, "qos", "Slurm quality of service", metavar="Q", plain=True, shown="QOS",
        variable="SBATCH_QOS")  # fmt: skip
    constraint: str = _slurm(
        str, "constraint", "features that the nodes must have", metavar="F", plain=True, shown="Features",
        variable="SBATCH_CONSTRAINT")  # fmt: skip
    exclude: str = _slurm(
        str, "exclude", "nodes not to use (data: behind the --)", metavar="NODES", plain=True, shown="ExcNodeList"
    )
    nodelist: str = _slurm(str, "nodelist", "nodes to use", metavar="NODES", plain=True, shown="ReqNodeList")
    reservation: str = _slurm(
        str, "reservation", "reservation to use", metavar="R", plain=True, shown="Reservation",
        variable="SBATCH_RESERVATION")  # fmt: skip
    nice: int | None = _slurm(
        int, "nice", "let others go first; the higher, the longer", metavar="N", plain=True,
        shown="Nice")  # fmt: skip
    comment: str = _slurm(str, "comment", "words for the job's record", metavar="TEXT", plain=True, shown="Comment")
    slurm: tuple[str, ...] = _slurm(
        tuple, "", "any other option of sbatch, such as mail-type=END; may be repeated",
        metavar="KEY=VALUE")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(Resources):
    """What stands on launch.py's command line beside the training flags."""

    job: str = row(
        str, f"{', '.join(kinds.JOBS)}, or pipeline (the VAE, then diffusion on it)", metavar="JOB",
        group="what")  # fmt: skip
    preset: str = row(str, "a named configuration; training flags override it", metavar="NAME", group="what")
    name: str = row(str, "name of the run (default: one that follows from the configuration)", group="what")
    sweep: tuple[str, ...] = row(
        tuple, "one run per value, as a job array; may be repeated; with more values later it adds points",
        metavar="FLAG=A,B,...", group="what")  # fmt: skip
    throttle: int | None = row(
        int, "of a sweep: so many points at a time", metavar="N", group="what", resume=True, kept=True, least=1,
        local=False)  # fmt: skip
    after: str = row(str, "start when that run, or all of that sweep, is done", metavar="RUN", group="what")
    max_restarts: int | None = row(
        int, f"give up after so many restarts (default {MAX_RESTARTS}; pre-emptions do not count)", metavar="N",
        group="where", resume=True, kept=True, local=False, least=0)  # fmt: skip
    max_gpu_hours: float | None = row(
        float, "GPU hours over all attempts; the run then saves and ends (default: no limit)", metavar="H",
        group="where", resume=True, kept=True)  # fmt: skip
    notify: str = row(
        str, "a mail address, or a name under [notify] of your own sites.toml: who hears when the run is done, has "
        "failed or waits for you", metavar="WHO", group="where", resume=True, kept=True)  # fmt: skip
    site: str = row(
        str, "profile of jobs/sites.toml (default: recognised)", metavar="PROFILE", group="where", resume=True,
        kept=True)  # fmt: skip
    local: bool = row(bool, "run on this machine, without Slurm", group="how", resume=True, kept=True)
    wait: bool = row(bool, "show the log and return when the run is over", group="how", resume=True)
    dry_run: bool = row(
        bool, "print the config, the sbatch text and the checks; queue nothing", group="how", resume=True)  # fmt: skip
    shared: bool = row(bool, "let your group read the run (default: only you can)", group="how", kept=True)
    json: bool = row(bool, "print one JSON object per run", group="how", resume=True)
    # What the user's shell says, for the checks: (flag, value, variable), and variables that no option takes.
    from_shell: tuple[tuple[str, str, str], ...] = ()
    not_taken: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse numbers that cannot be, and options that --local would ignore."""
        for r in TABLE.values():
            value = getattr(self, r.name)
            if r.least is not None and value is not None and value < r.least:
                raise ConfigError(f"{r.flag} {value}: at least {r.least}")
        if self.max_gpu_hours is not None and not 0 < self.max_gpu_hours < 1e9:
            raise ConfigError(f"--max-gpu-hours {self.max_gpu_hours:g}: more than 0")
        ignored = [name for name in OF_SLURM if self.local and is_given(getattr(self, name))]
        if ignored:
            names = ", ".join(TABLE[name].flag for name in ignored)
            data = f"; {DATA_TOO}" if self.exclude else ""
            raise ConfigError(f"--local runs on this machine, so leave out {names}: they are for a cluster{data}")
        if re.search(r"[*?/]", self.exclude):
            raise ConfigError(f"--exclude {self.exclude}: before the -- these are nodes; {DATA_TOO}")
        further(self.slurm)

    def remembered(self) -> dict:
        """What was typed, or came from the shell, and `resume` is to use again."""
        return {name: value for name in REMEMBERED if is_given(value := getattr(self, name))}


def _rows(of: type) -> dict[str, Row]:
    return {f.name: replace(f.metadata["row"], name=f.name) for f in fields(of) if "row" in f.metadata}


TABLE = _rows(Options)
PROFILE = _rows(Resources)  # what a profile may say
REMEMBERED = tuple(name for name, r in TABLE.items() if r.kept)  # what `resume` uses again
OF_SLURM = tuple(name for name, r in TABLE.items() if not r.local)  # what has a meaning on a cluster alone

# Further options of sbatch, which have no flag of launch.py and come through --slurm: their field in `scontrol show
# job`. A job that a person queued with sbatch may have any of them, and its successor and its resume keep them.
FURTHER = {
    "mem-per-cpu": "MinMemoryCPU", "mem-per-gpu": "MemPerTres", "mail-type": "MailType", "mail-user": "MailUser",
    "licenses": "Licenses", "exclusive": "OverSubscribe", "contiguous": "Contiguous", "tmp": "MinTmpDiskNode",
    "switches": "Switches", "deadline": "Deadline", "time-min": "TimeMin", "core-spec": "CoreSpec",
    "gres-flags": "GresEnforceBind", "gpu-bind": "TresBind", "gpu-freq": "TresFreq", "wckey": "WCKey",
    "network": "Network",
}  # fmt: skip
# Those for which a job of launch.py has another way: it starts one task per GPU and asks for GPUs by node.
INSTEAD = {
    "gpus": "--gpus N, per node", "gpus-per-node": "--gpus N", "gpus-per-task": "--gpus N",
    "gpus-per-socket": "--gpus N",
    "cpus-per-gpu": "--cpus N", "ntasks": "--gpus N", "ntasks-per-node": "--gpus N", "ntasks-per-gpu": "--gpus N",
    "array": "--sweep FLAG=A,B", "dependency": "--after RUN", "wait": "--wait", "test-only": "--dry-run",
}  # fmt: skip
# What launch.py decides: a job with another value would not save, not come back, or not be found again.
OURS = frozenset(
    "chdir clusters error export export-file get-user-env help input job-name no-requeue open-mode output parsable "
    "quiet requeue signal umask uid gid version wrap bcast het-group begin hold".split()
)


def further(words: tuple[str, ...]) -> dict[str, str | bool]:
    """--slurm KEY=VALUE, ... as {key: value}; the last one of a key counts, True stands where there is no value."""
    found: dict[str, str | bool] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.strip().removeprefix("--").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key) or not value.isprintable():
            raise ConfigError(f"--slurm {word!r}: write an option of sbatch as KEY=VALUE, as in --slurm mail-type=END")
        own = next((r.flag for r in PROFILE.values() if r.sbatch == key), INSTEAD.get(key))
        if own:
            raise ConfigError(f"--slurm {word}: use {own}")
        if key in OURS:
            raise ConfigError(f"--slurm {word}: launch.py sets {key} itself; leave it out")
        found[key] = value if equals else True
    return found


def from_shell(options: Options, environ: Mapping[str, str] | None = None) -> Options:
    """The options, with what sbatch would have taken from the user's shell in the places of what was not given.

    sbatch itself sees none of these variables: what was checked and printed is what is queued.
    """
    environ = os.environ if environ is None else environ
    taken: dict[str, Any] = {}
    told, left = [], []
    keys = further(options.slurm)
    for r in PROFILE.values():
        value = environ.get(r.variable, "").strip() if r.variable else ""
        if value and not is_given(getattr(options, r.name)) and not _said_otherwise(r.name, options, keys):
            if r.kind is int and not value.isdecimal():
                left.append(r.variable)
                continue
            taken[r.name] = r.kind(value)
            told.append((r.flag, value, r.variable))
    more: list[str] = []
    for key in FURTHER:
        variable = f"SBATCH_{key.upper().replace('-', '_')}"
        if variable in environ and not _said_otherwise(key, replace(options, **taken), keys | further(tuple(more))):
            more.append(f"{key}={environ[variable]}" if environ[variable] else key)
            told.append(("--slurm", more[-1], variable))
    if more:
        taken["slurm"] = (*more, *options.slurm)
    known = {r.variable for r in PROFILE.values()} | {variable for *_, variable in told}
    left += [name for name in environ if name.startswith("SBATCH_") and name not in known]
    left += [name for name in ("SLURM_CLUSTERS",) if name in environ]  # of another cluster nothing is known here
    return replace(options, **taken, from_shell=tuple(told), not_taken=tuple(sorted(left)))


# Ways to say the same, of which sbatch takes one.
MEMORY = {"mem", "mem-per-cpu", "mem-per-gpu"}
SAME = ({"gpus", "gres"}, MEMORY)


def _said_otherwise(name: str, options: Resources, keys: Mapping[str, object]) -> bool:
    """Whether it was given, in this way or in another one: what the user's shell says stands back behind that."""
    ways = next((ways for ways in SAME if name in ways), {name})
    return any(way in keys or (way in PROFILE and is_given(getattr(options, way))) for way in ways)


def asked(options: Resources, profile: Resources) -> Resources:
    """What is asked for: the options, over the profile's values."""
    values: dict[str, Any] = {}
    if _said_otherwise("mem", options, further(options.slurm)):  # in one of its ways: the profile's is another one
        others = tuple(word for word in profile.slurm if not MEMORY & further((word,)).keys())
        profile = replace(profile, mem="", slurm=others)
    for name in PROFILE:
        ours, theirs = getattr(options, name), getattr(profile, name)
        values[name] = (*theirs, *ours) if name == "slurm" else ours if is_given(ours) else theirs
    return Resources(**values)


def plain_options(resources: Resources) -> dict[str, str | int | bool]:
    """What sbatch gets as it was given, by Slurm's names."""
    given = {r.sbatch: getattr(resources, r.name) for r in PROFILE.values() if r.plain}
    return {key: value for key, value in given.items() if is_given(value)} | further(resources.slurm)


def add_flags(parser: Any, group: str, only: str = "") -> None:
    """Give an argparse parser the flags of a group of the table; only: 'resume' for those that resume has too."""
    for r in TABLE.values():
        if r.group == group and (not only or getattr(r, only)):
            if r.kind is bool:
                parser.add_argument(r.flag, action="store_true", help=r.help)
            elif r.kind is tuple:
                parser.add_argument(r.flag, action="append", default=[], metavar=r.metavar, help=r.help)
            else:
                parser.add_argument(r.flag, type=r.kind, default=EMPTY[r.kind], metavar=r.metavar, help=r.help)


def options_of(given: argparse.Namespace) -> Options:
    """argparse's answer, typed."""
    values: dict[str, Any] = {}
    for name, value in vars(given).items():
        if name in TABLE:
            values[name] = tuple(value) if isinstance(value, list) else value
    return Options(**values)


def is_given(value: object) -> bool:
    """Whether a person gave this option; 0, as in --gpus 0, is a value."""
    return value is not None and value is not False and value != "" and value != ()
