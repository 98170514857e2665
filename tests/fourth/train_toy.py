"""Train the smallest generator there is: the mean and the spread of the slices, pixel by pixel.

Nobody uses it. It is what CONTRIBUTING.md calls a train script, so that the tests see what a new kind of model touches.
"""

import sys
from dataclasses import dataclass, field
from functools import partial

import torch
from models.toy import Toy

from data.batches import Batches
from data.build import packing_of
from data.pack import ensure_pack
from jobs.config import parsing, rules
from jobs.config.specs import ToyConfig
from jobs.run import stopping
from jobs.run.attempt import Attempt, adopt_config, check_data, prepare_run, report_and_code
from jobs.run.rundir import RunDir
from jobs.training import collectives, devices, randomness, ranks
from jobs.training.averages import Averages
from jobs.training.checkpoint import Checkpoints
from jobs.training.upkeep import FRESH_COUNTERS, Record, State, Upkeep, already_done, optimizer_step
from jobs.view.grids import image_grid


@dataclass
class TrainState(State):
    toy: Toy
    opt: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averages: Averages
    counters: dict = field(default_factory=lambda: dict(FRESH_COUNTERS))


def train(c: ToyConfig, rt: ranks.Runtime, run: RunDir, pack, attempt: Attempt) -> int:
    toy = Toy(c.channels, c.resolution)
    s = TrainState(
        toy, torch.optim.Adam(toy.parameters(), c.lr), torch.amp.GradScaler("cpu", enabled=False), Averages()
    )
    upkeep = Upkeep(c, rt, run, s, Checkpoints(run.checkpoints, keep=c.keep, say=attempt.say), attempt)
    found = upkeep.resume()
    batches = Batches(pack, seed=c.seed, batch=c.batch, device=rt.device)
    record = Record(c, rt, run, attempt, found, torch.float32, flops=lambda: {None: 1.0}, waits=upkeep.waits)
    about = {"classes": pack.classes, "geometry": pack.geometry}
    nimg = upkeep.begin(found, torch.float32, batches)

    def look(nimg: int):
        images = toy.pictures(torch.randn(16, c.channels, c.resolution, c.resolution)).detach()
        return image_grid(images.clamp(-1, 1).add(1).mul(127.5).byte().numpy(), 4), {}

    while True:
        record.tick(nimg, s, look=look, extra=lambda: {"toy_spread": toy.log_sd.exp().mean().item()})
        if upkeep.agree(nimg):
            upkeep.save(nimg, {"toy": toy}, about)
        if upkeep.ending:
            batches.close()
            return upkeep.leave(record, nimg)
        for start, stop in randomness.rows(c.batch, rt.rank, rt.world, c.accumulate):
            images, _ = batches.rows(nimg, start, stop)
            loss = toy.loss(images) / c.accumulate
            loss.backward()
        optimizer_step(rt, toy, s.opt, s.scaler, c.lr, 1.0)
        s.averages.add({"toy_loss": loss.detach()})
        nimg += c.batch
        record.step_done(nimg)


def main() -> int:
    c = parsing.parse_config(ToyConfig)
    rank, world, _ = ranks.ranks()
    rules.check_world(c, world)
    run = RunDir(c.run)
    if already_done(c, run, rank):
        return stopping.DONE
    with ranks.Meeting() as meeting, Attempt(run, c, rank) as attempt:
        if rank == 0 and not prepare_run(run, c, attempt.say):
            return stopping.DONE
        pack = meeting.first(partial(ensure_pack, c.data, split=c.split, **packing_of(c) | {"log": attempt.say}))
        check_data(run, c, pack.classes, {c.split: pack.digest}, attempt.say)
        adopt_config(run, c)
        rt = collectives.init_runtime(c.threads, meeting, devices.choose_device(meeting, c.device))
        code = train(c, rt, run, pack, attempt)
        collectives.shutdown(rt)
        return code


if __name__ == "__main__":
    sys.exit(report_and_code(main))
