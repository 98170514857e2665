"""Tiny training runs for the tests: 32 px networks of a few thousand parameters on phantoms, as real processes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import forks  # noqa: E402

from jobs.cluster.submit import tracked_files  # noqa: E402

TINY = (
    "--device cpu --preset quickstart --data phantom:48 --resolution 32 --channel-base 256 --channel-max 8 "
    "--z-dim 16 --w-dim 16 --batch 8 --mbstd-group 2 --threads 1 --precision fp32 --log-kimg 0.04 --sample-kimg 0.16 "
    "--loss logistic --gamma 0.1 --r1-interval 16 --pl-weight 2 --ada mri --checkpoint-minutes 0 --checkpoint-kimg "
    "0.048 --ada-kimg 2 --metric-kimg 0"
).split()
COMMON = (
    "--device cpu --preset quickstart --data phantom:48 --resolution 32 --batch 8 --threads 1 --precision fp32 "
    "--log-kimg 0.04 --sample-kimg 0.16 --checkpoint-minutes 0 --checkpoint-kimg 0.048 "
    "--warmup-kimg 0.05 --decay-kimg 1 --lr 0.001"
)
FLAGS = {
    "train_gan.py": TINY,
    "pretrain_vae.py": f"{COMMON} --width 8 --latent-channels 2 --gan-weight 0.5 --gan-start-kimg 0.12 "
    "--disc-width 8".split(),
    "train_diffusion.py": f"{COMMON} --widths 8,16 --head-dim 8 --attention 4 --dropout 0.1 --steps 4 "
    "--metric-kimg 0".split(),
}
TIMING = set(
    "img_per_s sec_per_kimg seconds gpu_gb gpu_util rss_gb data_wait checkpoint_wait metric_wait tflops "
    "peak_share".split()
)


def environment(packs: Path, **extra: str) -> dict[str, str]:
    """A clean environment: no rank or job variables of whoever runs the tests, packs in a folder of the test's."""
    keep = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_"))
    }
    return keep | {"OMP_NUM_THREADS": "1", "BRAIN_PACK_DIR": str(packs), "MPLBACKEND": "Agg"} | extra


def start(
    run: Path,
    *flags: str,
    packs: Path,
    ranks: int = 1,
    script: str = "train_gan.py",
    anew: bool = False,
    **env: str,
) -> list[subprocess.Popen | forks.Forked]:
    """Start one process per rank; their output goes to <run>.<rank>.out. They are forked from one that has its imports
    behind it, which spares seconds, unless they are to start `anew`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(ranks):
        variables = {} if ranks == 1 else dict(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )  # fmt: skip
        words = [script, "--run", str(run), *FLAGS[script], *map(str, flags)]
        variables = environment(packs, **variables, **env)
        with open(f"{run}.{rank}.out", "ab") as out:
            processes.append(
                subprocess.Popen([sys.executable, "-u", *words], cwd=ROOT, stdout=out, stderr=out, env=variables)
                if anew
                else forks.Forked(words, variables, out, out)
            )
    return processes


def finish(processes: list, seconds: float = 600) -> list[int]:
    """Exit codes of all ranks; ranks that outlive the bound are killed and fail the test."""
    end = time.monotonic() + seconds
    try:
        return [p.wait(max(end - time.monotonic(), 0.1)) for p in processes]
    finally:
        kill(processes)


def kill(processes: list) -> None:
    for p in processes:
        if p.poll() is None:
            p.send_signal(signal.SIGKILL)
    for p in processes:
        p.wait(300)


def train(run: Path, *flags: str, packs: Path, **how) -> int:
    """Run to the end; the worst exit code of the ranks. `how` as for start()."""
    return max(finish(start(run, *flags, packs=packs, **how)))


def kill_at_random_moments(
    run: Path,
    *flags: str,
    packs: Path,
    kills: int,
    seed: int,
    ranks: int = 1,
    one: bool = False,
    script: str = "train_gan.py",
) -> None:
    """SIGKILL at moments drawn from the seed, measured from the start of each attempt's loop, then let it finish.

    `one`: of several ranks only one is killed; the others must notice and leave by themselves.
    """
    rng = random.Random(seed)
    attempts = run / "attempts.jsonl"

    def lines() -> int:
        return attempts.read_bytes().count(b"\n") if attempts.exists() else 0

    for _ in range(kills):
        known = lines()
        processes = start(run, *flags, packs=packs, ranks=ranks, script=script)
        wait_until(lambda p=processes, k=known: p[0].poll() is not None or lines() > k)
        time.sleep(rng.uniform(0.0, 2.0))
        if one:
            processes[rng.randrange(ranks)].send_signal(signal.SIGKILL)
            finish(processes)
        kill(processes)
    assert train(run, *flags, packs=packs, ranks=ranks, script=script) == 0, output(run)


def output(run: Path, rank: int = 0) -> str:
    path = Path(f"{run}.{rank}.out")
    return path.read_text(errors="replace") if path.exists() else ""


def weights_hash(run: Path) -> str:
    return hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()


def rows(run: Path, timing: bool = False) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return lines if timing else [{k: v for k, v in row.items() if k not in TIMING} for row in lines]


def assert_same_run(run: Path, reference: Path) -> None:
    """The same weights to the last bit, and a log of 400 images without a gap or a double row."""
    assert weights_hash(run) == weights_hash(reference)
    assert rows(run) == rows(reference)
    nimg = [row["nimg"] for row in rows(run)]
    assert nimg == sorted(set(nimg)) and nimg[-1] == 400


def copy_toolkit(folder: Path) -> Path:
    """A copy of the tracked files, without git, in which launch.py has a runs/ of its own."""
    for name in tracked_files(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def wait_until(condition, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
