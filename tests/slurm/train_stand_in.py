"""Stands in for train_gan.py in a copy of the toolkit: the real start, stop, attempt and end, and it only counts.

No torch, so that a test of what launch.py and Slurm do with a run is done in seconds.
"""

import sys
import time

from jobs.run import stopping

stopping.install_handlers()

from jobs.config import parsing  # noqa: E402
from jobs.config.specs import GanConfig  # noqa: E402
from jobs.run.attempt import Attempt, prepare_run, report_and_code  # noqa: E402
from jobs.run.rundir import RunDir  # noqa: E402
from jobs.run.states import RunState  # noqa: E402

START_S, STEP_S = 1.5, 0.1  # as long as an import of torch takes; a step


def main() -> int:
    run = RunDir(sys.argv[sys.argv.index("--run") + 1])
    time.sleep(START_S)
    c = parsing.from_dict(GanConfig, run.read_config() or {})
    if run.done():
        return stopping.DONE
    with Attempt(run, c, 0) as attempt:
        if not prepare_run(run, c, attempt.say):
            return stopping.DONE
        nimg, total = run.newest_checkpoint(), round(c.total_kimg * 1000)
        attempt.begin(nimg, total, machine={})
        watch = stopping.StopWatch(run)
        while True:
            level = watch.poll()
            ending = nimg >= total or level >= 2
            if ending or nimg % (8 * c.batch) == 0:
                (run.checkpoints / f"{nimg:08}.json").write_text("{}")
            if nimg >= total:
                run.mark_done()
                return attempt.end(stopping.DONE, RunState.DONE, "finished")
            if ending:
                by_person, reason = level >= 3, watch.describe(level)
                code = stopping.DONE if by_person else stopping.CONTINUE
                return attempt.end(code, RunState.STOPPED if by_person else RunState.CONTINUE, reason)
            nimg += c.batch
            attempt.heartbeat(nimg)
            time.sleep(STEP_S)


if __name__ == "__main__":
    sys.exit(report_and_code(main))
