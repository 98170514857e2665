"""The job that goes on with a run where requeueing is forbidden: queued with all options of the job it follows.

What those were is read back from `scontrol show job`, which knows what a person or an administrator changed meanwhile;
`resume` of a run that a person started with sbatch takes the same options over. Torch-free.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jobs.cluster import nodes, sbatch, slurm, submit
from jobs.cluster.decide import bad_nodes, started_by_person
from jobs.cluster.options import FURTHER, PROFILE
from jobs.cluster.slurm import Job, SlurmError
from jobs.config import kinds, specs
from jobs.run.find import read_jobs
from jobs.run.rundir import RunDir

NOTHING = {"", "(null)", "N/A", "None", "0", "*", "Unknown"}
# How GPUs that a person asked for in another way than per node are shown.
GPUS = {"gpus": "TresPerJob", "gpus-per-socket": "TresPerSocket", "gpus-per-task": "TresPerTask"}


def options_of_job(shown: dict[str, str]) -> dict[str, str | bool]:
    """{sbatch's option: value} of a job, from its fields in `scontrol show job`. What is no option's value is left
    out."""
    names = {row.sbatch: row.shown for row in PROFILE.values() if row.shown} | FURTHER
    found: dict[str, str | bool] = {}
    for option, field in names.items():
        value = shown.get(field, "").strip()
        read = READERS.get(option)
        if value not in NOTHING and (given := read(value) if read else value):
            found[option] = given
    for option, field in GPUS.items():
        if gpus := _gres(shown.get(field, "")):
            found[option] = gpus.removeprefix("gpu:")
    per_node, tasks = shown.get("NtasksPerN:B:S:C", "").partition(":")[0], shown.get("NumTasks", "")
    if per_node.isdecimal() and per_node != "0":
        found["ntasks-per-node"] = per_node
    elif tasks.isdecimal():
        found["ntasks"] = tasks
    # Of several ways to say the same only one may be given.
    if cpus := _count(shown.get("CpusPerTres", "")):
        found["cpus-per-gpu"] = cpus
        found.pop("cpus-per-task", None)
    if "mem-per-gpu" in found or "mem" in found:
        found.pop("mem-per-cpu", None)
    return found


def _gres(text: str) -> str:
    """ "gres:gpu:a100:2" (22.05), "cpu=4,gres/gpu:a100=2" (25.05) -> "gpu:a100:2"."""
    items = [re.sub(r"^gres[:/]", "", item).replace("=", ":") for item in text.split(",")]
    return ",".join(i for i in items if i not in NOTHING and not i.startswith(("cpu:", "mem:", "node:", "billing:")))


def _count(text: str) -> str:
    """ "gres:gpu:3" -> "3"."""
    return m[1] if (m := re.search(r"gpu[:=](\d+)$", text)) else ""


def _memory(text: str) -> str:
    """scontrol writes 4.50G, which sbatch does not take back."""
    megabytes = slurm.parse_memory(text)
    return f"{megabytes}M" if megabytes else ""


READERS: dict[str, Any] = {
    "gres": _gres, "mem": _memory, "mem-per-cpu": _memory, "tmp": _memory,
    "mem-per-gpu": lambda text: f"{count}M" if (count := _count(text)) else "",
    "nodes": lambda text: text.partition("-")[0] if len(set(text.split("-"))) == 1 else text,
    "exclusive": lambda text: {"NO": True, "USER": "user", "MCS": "mcs"}.get(text, ""),
    "contiguous": lambda text: text == "1",
    "gres-flags": lambda text: "enforce-binding" if text == "Yes" else "",
    "wckey": lambda text: text.removeprefix("*"),
}  # fmt: skip


def as_typed(shown: dict[str, str]) -> dict[str, Any]:
    """The options of launch.py that come to the job that a person queued with sbatch, for `resume`: one task per GPU,
    GPUs asked for by node."""
    given = options_of_job(shown)
    found: dict[str, Any] = {}
    for name, row in PROFILE.items():
        value = given.get(row.sbatch, "") if row.sbatch else ""
        if value and (row.kind is not int or str(value).lstrip("-").isdecimal()):
            found[name] = row.kind(value)
    if "time" in found and not slurm.parse_time(found["time"]):
        del found["time"]  # no limit at all, which a run of launch.py cannot have
    nodes, tasks = int(found.get("nodes") or 1), int(given.get("ntasks-per-node") or 1)
    gres = str(given.get("gres", ""))
    if not gres and (all_of_them := given.get("gpus")):
        kind, _, count = f"gpu:{all_of_them}".rpartition(":")
        gres = f"{kind}:{-(-int(count) // nodes)}"
    elif not gres and (of_a_task := given.get("gpus-per-task")):
        kind, _, count = f"gpu:{of_a_task}".rpartition(":")
        gres = f"{kind}:{int(count) * tasks}"
    counted = slurm.parse_gres(gres)
    gpus = sum(n for kind, n in counted.items() if kind.startswith("gpu"))
    found.pop("gres", None)
    found["gpus"] = gpus
    if gres and len(counted) == 1 and gpus:
        found["gres"] = f"{next(iter(counted))}:{{gpus}}"
    elif gres:
        found["gres"] = gres
    if per_gpu := given.get("cpus-per-gpu"):
        found["cpus"] = int(per_gpu)
    more = tuple(key if given[key] is True else f"{key}={given[key]}" for key in FURTHER if key in given)
    return found | ({"slurm": more} if more else {})


def remember_options(run: Path, job: Job) -> None:
    """Keep what a person asked of sbatch in jobs.json, where a resume looks for it once Slurm has forgotten the job."""
    with submit.submit_lock(run):
        about = read_jobs(run)
        before = about.get("options")
        others = {k: v for k, v in before.items() if k not in PROFILE} if isinstance(before, dict) else {}
        submit.write_about(run, about | {"options": others | as_typed(job.shown)})


def queue_successor(run: RunDir, about: dict, job: Job | None) -> str:
    """Queue a job that goes on with the run after `job` has ended, in any way, with the same options.

    Returns its id.
    """
    if job is None or about.get("job") not in kinds.JOBS:
        raise SlurmError("the job's own description is not known")
    options: dict[str, Any] = {"dependency": f"afterany:{job.id}"} | options_of_job(job.shown)
    options.setdefault("gres", "none")  # the script asks for one
    if avoid := _to_avoid(run, about, job):
        options["exclude"] = ",".join(avoid)
    kept = about.get("options")
    wanted = kept.get("partition") if isinstance(kept, dict) else None
    if isinstance(wanted, str) and job.partition in wanted.split(","):
        options["partition"] = wanted  # of a list a running job shows the one that it got
    if type(margin := about.get("margin")) is int:
        options["signal"] = f"USR2@{margin}"
    options["job-name"] = job.name
    options["output"] = str(run.logs / "%j.out").replace("%j", "\0").replace("%", "%%").replace("\0", "%j")
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    words = ["--parsable", "--no-requeue", *words, f"jobs/{about['job']}.sh", "--run", str(run.path)]
    with submit.submit_lock(run.path):
        known = {str(entry["id"]) for entry in read_jobs(run.path).get("submitted", [])}
        new = sbatch.submit(words, specs.ROOT, lambda other: other.id not in known and sbatch.follows(other, job.id))
        submit.note_submitted(run.path, [(new, "chain")], after=job.id)
    return new


def _to_avoid(run: RunDir, about: dict, job: Job) -> list[str]:
    """Nodes on which attempts died, and those that the job avoids already; [] where that is not to be had."""
    lines = [line for line in run.read_attempts() if line.get("event") == "decision"]
    try:
        return nodes.to_avoid(job, bad_nodes(lines, started_by_person(about)))
    except SlurmError:
        return []
