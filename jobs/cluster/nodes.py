"""Keeping a run off nodes on which its attempts died. Torch-free."""

from __future__ import annotations

from jobs.cluster import slurm
from jobs.cluster.slurm import FIELD, Job


def to_avoid(job: Job, bad: list[str]) -> list[str]:
    """The nodes that the job's next start is to avoid: `bad` and those it avoids already; [] where no other node is
    left that is up and has such GPUs, as it would then wait for ever."""
    if not bad:
        return []
    avoided = sorted({*bad, *_names(job.excluded)})
    command = ["sinfo", "-h", "-N", "-p", job.partition, "-t", "idle,mix,alloc,comp", "-o", FIELD.join(("%N", "%G"))]
    wanted = job.gres.rpartition(":")[0] if job.gres[-1:].isdecimal() else job.gres  # "gpu:a100:2" asks for gpu:a100
    rows = [line.split(FIELD) for line in slurm._run(command).splitlines() if line.count(FIELD) == 1]
    return avoided if {name for name, gres in rows if wanted in gres} - {*avoided} else []


def keep_off(job_id: str, nodes: list[str]) -> None:
    """Let a job that waits, or was put back into the queue this moment, start on none of these nodes."""
    slurm._run(["scontrol", "update", f"JobId={slurm._checked_id(job_id)}", f"ExcNodeList={','.join(nodes)}"])


def _names(hosts: str) -> list[str]:
    """Slurm's "n[1-2],m7" as single names."""
    return slurm._run(["scontrol", "show", "hostnames", hosts]).split() if hosts else []
