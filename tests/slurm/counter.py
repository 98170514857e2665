"""A training process without the training: it counts images with the real stop, attempt and run-directory code, no
torch.

    counter.py RUN TOTAL [SECONDS_PER_STEP] [--deaf] [--idle]

A checkpoint is its commit marker alone; the file `counted` says how far it is. --deaf: dies on signals, as a process
does that never installed handlers. --idle: stops at once and asks to go on.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.files import atomic_write
from jobs.run import stopping
from jobs.run.attempt import Attempt
from jobs.run.rundir import RunDir


def main() -> int:
    path, total, *rest = [word for word in sys.argv[1:] if not word.startswith("--")]
    total, pause = int(total), float(rest[0]) if rest else 0.05
    run = RunDir(path)
    if "--deaf" not in sys.argv:
        stopping.install_handlers()
    if run.done():
        return stopping.DONE
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    with Attempt(run, SimpleNamespace(batch=1), rank) as attempt:
        nimg = run.newest_checkpoint()
        attempt.begin(nimg, total, machine={})
        watch = stopping.StopWatch(run)
        while True:
            level = watch.poll()
            ending = nimg >= total or level >= 2 or "--idle" in sys.argv
            if rank == 0 and ("--deaf" in sys.argv or ending):
                atomic_write(run.checkpoints / f"{nimg:08}.json", "{}")
            if nimg >= total:
                run.mark_done()
                return attempt.end(stopping.DONE, "done", "finished")
            if ending:
                by_person = level >= 3
                reason = watch.describe(level) or "idle"
                return attempt.end(
                    stopping.DONE if by_person else stopping.CONTINUE, "stopped" if by_person else "continue", reason
                )
            nimg += 1
            attempt.heartbeat(nimg)
            if rank == 0:
                atomic_write(run.path / "counted", str(nimg))
            time.sleep(pause)


if __name__ == "__main__":
    sys.exit(main())
