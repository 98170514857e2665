"""A real Slurm for the tests: a private cluster under a temporary folder, started and stopped by tests/slurm/*.sh."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiny import ROOT, environment

SCRIPTS = Path(__file__).resolve().parent / "slurm"
DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch")
ACCOUNTS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb-admin")


def missing(names: tuple = DAEMONS, packages: str = "slurmctld slurmd slurm-client munge") -> str:
    """What keeps a cluster from being started here; '' if nothing does."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacking = [name for name in names if shutil.which(name, path=path) is None]
    return f"{', '.join(lacking)} not found (apt-get install {packages})" if lacking else ""


def missing_accounts() -> str:
    """What keeps a cluster with accounting from being started; '' if nothing does."""
    return missing(ACCOUNTS, "slurmdbd mariadb-server-core mariadb-client")


class Cluster:
    """Two nodes n1 and n2 with four pretended GPUs each; partitions a100 (pre-emptible), a100-test, cpu."""

    def __init__(self, **knobs: str):
        """knobs: the variables of tests/slurm/up.sh, such as LAB_GRACE="0"."""
        self.dir = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.knobs = {
            "LAB_KILLWAIT": "30"
        } | knobs  # Slurm's own value: on a busy machine five seconds are no time to save
        self.env = environment(self.dir / "packs", PYTHON=sys.executable, SLURM_CONF=str(self.dir / "etc/slurm.conf"))
        self.env["PATH"] += ":/usr/sbin:/sbin"

    def up(self) -> None:
        """Start whatever does not run."""
        # The daemons inherit the output otherwise, and a reader of it would wait for them.
        with open(self.dir / "up.out", "wb") as out:
            done = subprocess.run(
                [SCRIPTS / "up.sh", self.dir], env=self.env | self.knobs, stdout=out, stderr=out, timeout=300
            )
        assert done.returncode == 0, (self.dir / "up.out").read_text()

    def down(self) -> None:
        subprocess.run([SCRIPTS / "down.sh", "--purge", self.dir], env=self.env, timeout=120, check=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    def crash(self, node: str) -> None:
        """Power-cut: the node's daemon and all of its tasks are gone at once."""
        subprocess.run([SCRIPTS / "crash.sh", self.dir, node], env=self.env, timeout=60, check=True)

    def run(self, *command, check: bool = True, cwd: Path = ROOT, **env: str) -> str:
        """Standard output of a command on the login node of this cluster."""
        done = subprocess.run(
            [str(word) for word in command], cwd=cwd, env=self.env | env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *words, **env: str) -> str:
        """Queue a job; its id."""
        return self.run("sbatch", "--parsable", *words, **env).split(";")[0]

    def show(self, job: str) -> dict[str, str]:
        """Fields of `scontrol show job`; {} for an unknown job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", job, check=False)))

    def state(self, job: str) -> str:
        return self.show(job).get("JobState", "")

    def restarts(self, job: str) -> int:
        return int(self.show(job).get("Restarts", -1))

    def wait(self, condition, what: str, seconds: float = 600, every: float = 0.25) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds} s for {what}\n{self.run('squeue')}"
            time.sleep(every)

    def wait_over(self, job: str, seconds: float = 600) -> str:
        """Wait until the job has left the queue for good; its last state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        self.wait(lambda: self.state(job) in over, f"the end of job {job}", seconds)
        return self.state(job)

    def move_limit(self, job: str, seconds: int) -> None:
        """Let the time limit of a running job be so many seconds away."""
        self.run("scontrol", "update", f"jobid={job}", f"EndTime=now+{seconds}")

    def cancel_all(self) -> None:
        with contextlib.suppress(AssertionError):
            self.run("scancel", "-u", str(os.getuid()))
            self.wait(lambda: not self.run("squeue", "-h"), "an empty queue", 300)


def ranks(run: Path) -> dict[int, int]:
    """{rank: pid} of the training processes of a run on the nodes."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if str(run).encode() in words and any(
                word.endswith((b"train_gan.py", b"train_diffusion.py", b"pretrain_vae.py")) for word in words
            ):
                for variable in (process / "environ").read_bytes().split(b"\0"):
                    if variable.startswith(b"SLURM_PROCID="):
                        found[int(variable.partition(b"=")[2])] = int(process.name)
    return found


@contextlib.contextmanager
def held(run: Path):
    """The training does not move meanwhile: however slow or fast the machine is, it is not over before it is told to
    stop."""
    pids = ranks(run).values()
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def leftovers(run: Path) -> list[str]:
    """Command lines of living processes that mention the run directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(run) in words and process.name != str(os.getpid()):
                found.append(words)
    return found
