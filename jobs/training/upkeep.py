"""What the train loops share: state that is saved by name, the record a person reads, saving, stopping, roll-back, the
end.

The loop itself stays in the script. All that looks at a run is called before a step, so that a resumed run continues at
exactly the place where the other one stopped.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

from data.files import is_number, say
from jobs.config import kinds, parsing, rules, specs
from jobs.run import stopping
from jobs.run.attempt import Attempt
from jobs.run.resume import compare_with_run
from jobs.run.rundir import RunDir
from jobs.run.states import RunDirError, RunState
from jobs.run.vae import COLLAPSE, verdict_of
from jobs.training import best, collectives, devices, judges, ranks, watchdog
from jobs.training.averages import Averages
from jobs.training.checkpoint import Checkpoints, Diverged, NonFinite, not_finite
from jobs.training.throughput import device_peak
from jobs.training.told import announce, size_of
from jobs.training.weights import on_host, replace_weights, write_weights
from jobs.view.grids import beside_reals, save_png
from jobs.view.metrics import MetricsLog
from jobs.view.plots import curves_of, plot_losses
from jobs.view.progress import Progress
from jobs.view.tensorboard import TensorBoard

HANG_SECONDS = 1800  # a step or a sample grid that takes longer is a hang: the watchdog ends the process with code 75


class State:
    """Base of a script's dataclass of all that the next step depends on. Every field is saved in a checkpoint, by name.

    A field is something with a state_dict, a tensor, or a flat dict. `averages` and `counters` must be among them; the
    latter holds at least FRESH_COUNTERS.
    """

    averages: Averages
    counters: dict

    def state_dict(self) -> dict:
        """{field: its state}, as a checkpoint holds it."""
        return {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in vars(self).items()}

    def load_state_dict(self, state: dict) -> None:
        """Take over a checkpoint's values, in place."""
        for name, value in vars(self).items():
            if isinstance(value, torch.optim.Optimizer):
                # The configuration rules over the checkpoint: a learning rate that --override changes takes effect.
                own = [{k: v for k, v in group.items() if k != "params"} for group in value.param_groups]
                value.load_state_dict(state[name])
                for group, values in zip(value.param_groups, own, strict=True):
                    group.update(values)
                _match_layout(value)
            elif hasattr(value, "load_state_dict"):
                value.load_state_dict(state[name])
            elif isinstance(value, torch.Tensor):
                value.copy_(state[name])
            else:
                setattr(self, name, dict(state[name]))

    def averaged(self, nimg: int) -> int:
        """Images behind the moving average after `nimg` of this run: --init-from brings those of the run before, so
        that the ramp-up does not forget at once what was handed on."""
        return nimg + self.counters.get("warm", 0)

    def check_finite(self) -> None:
        """Raise Diverged if a parameter or a loss is not finite. The same on every rank: all hold the same values."""
        parameters: list[torch.Tensor] = [
            p for v in vars(self).values() if isinstance(v, torch.nn.Module) for p in v.parameters()
        ]
        if not bool(torch.isfinite(torch.stack(torch._foreach_norm(parameters))).all()):
            raise Diverged("a network's parameters are not finite")
        bad = [name for name, value in self.averages.means().items() if not math.isfinite(value)]
        if bad:
            raise Diverged(f"{', '.join(bad)} not finite")


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay the moments out as their parameters are. A checkpoint of another kind of device may have the other layout,
    and fused optimizers pair parameters and moments by their place in memory."""
    for p, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == p.shape and value.stride() != p.stride():
                moments[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


# Data skipped after a divergence, how often that happened, and what the last look at the samples said.
FRESH_COUNTERS = {"skip": 0, "rollbacks": 0, "healthy": True}


def due(nimg: int, batch: int, interval_kimg: float) -> bool:
    """Whether an interval boundary was crossed by the step that ended at `nimg` (always true at 0; never for 0
    kimg)."""
    interval = round(interval_kimg * 1000)
    return interval > 0 and nimg // interval != (nimg - batch) // interval


class Record:
    """Rank 0's log of the run: rows, TensorBoard, progress, grids. On other ranks it only calls what all must."""

    def __init__(
        self,
        c,
        rt: ranks.Runtime,
        run: RunDir,
        attempt: Attempt,
        nimg: int,
        dtype: torch.dtype,
        flops: Callable[[], dict[Hashable, float]],
        waits: Callable[[], dict[str, float]],
    ):
        """`dtype`: the type that the networks run in. `flops()` -> {kind of step: FLOPs of one image in it}.
        `waits()` -> {column: seconds waited since the start}; a row has their shares of the time since the last row.
        """
        self.c, self.rt, self.run, self.attempt = c, rt, run, attempt
        self.main, self.total = rt.rank == 0, round(c.total_kimg * 1000)
        self.time, self.nimg, self.logged = time.monotonic(), max(nimg, 0), nimg
        self.measuring = 0.0  # seconds that figures of samples have taken
        self.waits = lambda: {**waits(), **({"metric_wait": self.measuring} if self.measuring else {})}
        self.waited = self.waits()
        if not self.main:
            return
        self.flops, self.peak, self.work = flops(), device_peak(rt.device, dtype), 0.0
        self.log = MetricsLog(run.metrics, resume_nimg=nimg)
        self.board = TensorBoard(run.tensorboard, purge_step=nimg + 1)
        self.board.about(parsing.result_fields(c), self.nimg)
        self.progress = Progress(self.total, self.nimg)
        self.slowdown = devices.Slowdown()
        attempt.printer = self.progress.write

    def tick(
        self,
        nimg: int,
        s: State,
        look: Callable,
        extra: Callable[[], dict],
        measure: Any = None,
        of: str = "",
    ) -> None:
        """A row at log, sample and metric intervals and at the end; `look(nimg)` -> (grid, figures) at sample
        intervals, `measure()` -> figures at metric intervals. `of`, or `measure.of`: what is measured on, and with.

        On every rank, once per place: the figures say whether the run is healthy, which all ranks must know.
        """
        if nimg == self.logged:
            return
        self.logged = nimg
        at_end, batch = nimg >= self.total, self.c.batch
        sampling = due(nimg, batch, self.c.sample_kimg) or at_end
        measuring = measure is not None and nimg > 0 and (due(nimg, batch, self.c.metric_kimg) or at_end)
        if not sampling and not measuring and not due(nimg, batch, self.c.log_kimg):
            return
        s.check_finite()
        grid, figures = look(nimg) if sampling else (None, {})
        if measuring:
            figures = {**figures, **self.timed(measure)}
        row = {"nimg": nimg, "kimg": nimg / 1000, **s.averages.means(), **figures, **extra()}
        judges.judge(self.c, row, s.counters, nimg, self.attempt.say)
        self.attempt.verdict = judges.verdict(s.counters)
        was_stale = best.stale(s.counters, self.total)
        best.look(s.counters, figures, of or getattr(measure, "of", ""), nimg)
        best.warn(s.counters, was_stale, self.total, self.attempt.say, self.c.stop_when_worse)
        row |= best.columns(s.counters)
        s.averages.reset()
        if self.main:
            if nimg:
                row |= self.speed(nimg) | devices.memory(self.rt.device)
                self.progress.tick(nimg, row)
                if self.rt.device.type == "cpu" and (words := self.slowdown.look(row, self.rt.threads)):
                    self.attempt.say(words)
                self.attempt.heartbeat(nimg, row["img_per_s"])
            self.log.append(row)
            self.board.scalars(row, nimg)
            if grid is not None:
                self.show(f"{nimg / 1000:09.3f}.png", "samples", grid, nimg)
            self.work = 0.0
        self.time, self.nimg, self.waited = time.monotonic(), nimg, self.waits()

    def timed(self, measure: Callable[[], dict]) -> dict:
        """measure(), whose share of the time the rows tell."""
        if self.rt.device.type == "cuda":
            torch.cuda.synchronize(self.rt.device)  # the steps before are not its time
        began = time.monotonic()
        figures = measure()
        self.measuring += time.monotonic() - began
        return figures

    def show(self, file: str, name: str, picture, nimg: int) -> None:
        """Rank 0: a picture for people. A disk on which it does not fit is no reason to stop."""
        if not self.main:
            return
        try:
            save_png(self.run.samples / file, picture)
        except OSError as error:
            self.attempt.say(
                f"WARNING: {self.run.samples / file} cannot be written ({error.strerror}); training goes on"
            )
        if name == "samples":  # what they should come to look like stands beside them
            self.board.image(name, beside_reals(picture, self.run.samples / "reals.png"), nimg)

    def speed(self, nimg: int) -> dict[str, float]:
        """Since the last row: images per second, seconds per kimg, shares of the time spent waiting, use of the
        device."""
        seconds = max(time.monotonic() - self.time, 1e-9)
        shares = {name: round((t - self.waited.get(name, 0.0)) / seconds, 4) for name, t in self.waits().items()}
        speed = (nimg - self.nimg) / seconds
        rate = self.work / seconds  # of one device
        use = {"tflops": float(f"{rate / 1e12:.4g}"), "peak_share": float(f"{rate / self.peak:.4g}")}
        return {"img_per_s": round(speed, 2), "sec_per_kimg": round(1000 / max(speed, 1e-9), 3), **use, **shares}

    def step_done(self, nimg: int, kind: Hashable = None) -> None:
        """After a step; `kind` is its key among the `flops`."""
        if self.main:
            self.work += self.flops[kind] * self.c.batch / self.rt.world
            self.progress.update(nimg)
            self.attempt.heartbeat(nimg)

    def rewind(self, nimg: int) -> None:
        """After a roll-back: the rows after `nimg` never were."""
        self.time, self.nimg, self.logged = time.monotonic(), nimg, nimg
        if self.main:
            self.work = 0.0
            self.log.truncate(nimg)
            self.board.rewind(nimg)
            self.progress.update(nimg)


class Upkeep:
    """Checkpoints, reasons to stop and roll-back of one attempt, agreed on by all ranks."""

    def __init__(self, c, rt: ranks.Runtime, run: RunDir, s: State, checkpoints: Checkpoints, attempt: Attempt):
        self.c, self.rt, self.run, self.s, self.checkpoints, self.attempt = c, rt, run, s, checkpoints, attempt
        self.total = round(c.total_kimg * 1000)
        self.watch = stopping.StopWatch(run if rt.rank == 0 else None)
        self.watchdog = watchdog.Watchdog(HANG_SECONDS)
        self.saved_at, self.saved_time, self.level, self.ending = -1, time.monotonic(), 0, False
        self.held: tuple[dict, dict] | None = None  # the best weights since the last checkpoint, and what they are
        self.held_at, self.holding = -1, threading.Lock()

    def waits(self) -> dict[str, float]:
        """{column: seconds waited so far}."""
        return {"checkpoint_wait": self.checkpoints.blocked_seconds}

    def resume(self) -> int:
        """Load the newest good checkpoint on every rank; returns its nimg, -1 for a fresh run."""
        loaded = load_on_all(self.checkpoints, self.rt)
        if loaded is not None:
            self.saved_at, state = loaded
            self.held_at = self.saved_at  # the best of that place is on disk
            self.s.load_state_dict(state)
            self.attempt.verdict = judges.verdict(self.s.counters)
        if self.c.stop_when_worse:
            best.renew(self.s.counters, self.total)
        if self.rt.rank == 0:
            best.settle(self.run, self.s.counters)
        return self.saved_at

    def begin(self, found: int, dtype: torch.dtype, batches: Any) -> int:
        """Write down and say what starts, where, and with what. Returns the images seen so far."""
        nimg, precision = max(found, 0), str(dtype).removeprefix("torch.")
        machine = devices.facts(self.rt) | {"precision": precision}
        self.attempt.begin(nimg, self.total, machine, precision=precision, world=self.rt.world, threads=self.rt.threads)
        self.watch.spent_at = self.attempt.spent_at
        if line := rules.patience_note(self.c):
            self.attempt.say(line)
        self.attempt.say(f"{kinds.name_of(self.c)}: {size_of(self.s, self.total, batches.count)}")
        self.attempt.say(
            f"{self.run.path}: {'starting' if found < 0 else 'resuming'} at {nimg / 1000:g} of "
            f"{self.total / 1000:g} kimg, {precision} on {self.rt.world} x {self.rt.device.type}, "
            f"data in {batches.placement}"
        )
        return nimg

    def agree(self, nimg: int) -> bool:
        """Whether all ranks save now. Sets `ending` when they also leave.

        A fresh run saves its first checkpoint at once: a full disk is found now, not in ten minutes.
        """
        self.watchdog.pat()
        minutes = (time.monotonic() - self.saved_time) / 60
        timed = self.rt.rank == 0 and minutes > self.c.checkpoint_minutes > 0
        told, timed = collectives.agree_max(self.rt, [self.watch.tell(), int(timed)])
        self.level = self.watch.hear(told)
        self.ending = self.level >= 2 or self.over(nimg)
        asked = self.ending or self.level or timed or self.saved_at < 0 or self.is_kept(nimg)
        return nimg != self.saved_at and bool(asked or due(nimg, self.c.batch, self.c.checkpoint_kimg))

    def over(self, nimg: int) -> bool:
        """Whether the run is done: all images seen, or none of the last third of them made it any better."""
        return nimg >= self.total or bool(
            self.c.stop_when_worse and collectives.agree_max(self.rt, [best.stale(self.s.counters, self.total)])[0]
        )

    def is_kept(self, nimg: int) -> bool:
        """Whether --keep-weights keeps these: so many evenly spaced ones, before the last."""
        parts = self.c.keep_weights + 1
        return parts > 1 and 0 < nimg < self.total and due(nimg, self.c.batch, -(-self.total // parts) / 1000)

    def hold(self, nimg: int, weights: Mapping[str, torch.nn.Module]) -> None:
        """After a look at figures: hold on to weights that are the best so far. The next checkpoint, whose counters
        say so, takes them along; what a killed or a rolled back run held is found again."""
        if self.rt.rank == 0 and nimg and self.s.counters.get("best_nimg") == nimg != self.held_at:
            self.held_at = nimg
            with self.holding:  # the writer lets go of the one before
                self.held = on_host(weights), {"nimg": nimg, "measured": best.measured(self.s.counters)}

    def save(self, nimg: int, weights: Mapping[str, torch.nn.Module], about: dict) -> None:
        """Rank 0: snapshot the state to host memory; the writer thread does the rest, predict.py's weights included."""
        self.s.check_finite()
        state, fresh = self.s.state_dict(), self.saved_at < 0
        if bad := not_finite(state):  # on every rank, so that all roll back together
            raise NonFinite(f"{bad} is not finite")
        self.saved_at, self.saved_time = nimg, time.monotonic()
        if self.rt.rank != 0:
            return
        about = {"job": kinds.name_of(self.c), "config": parsing.result_fields(self.c), "nimg": nimg, **about}
        if COLLAPSE in (verdict := judges.verdict(self.s.counters)):  # what a diffusion run has to know of its VAE
            about["verdict"] = verdict
        values = on_host(weights)
        healthy, is_kept, held = self.s.counters["healthy"], self.is_kept(nimg), self.held

        def write() -> None:
            replace_weights(self.run, values, about, healthy)
            if is_kept:
                write_weights(self.run.kept_weights(nimg), values, about)
            if held is not None:  # the best before stays until the checkpoint is there that says these are better
                write_weights(self.run.waiting_best, held[0], about | held[1])

        def adopt() -> None:
            if held is not None:
                os.replace(self.run.waiting_best, self.run.best)
                with self.holding:
                    self.held = None if self.held is held else self.held

        self.checkpoints.save(nimg, state, healthy=healthy, then=write, after=adopt)
        if fresh:
            self.checkpoints.wait(raise_errors=True)  # a disk on which nothing fits is found now, not at the end

    def roll_back(self, nimg: int, error: Diverged, advice: str) -> int:
        """Once: back to the last good checkpoint, and past the data and draws that led here. Then give up."""
        if self.s.counters["rollbacks"] >= 1:
            raise Diverged(f"{error}, again after a roll-back; {advice}") from None
        if self.rt.rank == 0:
            self.checkpoints.wait()
        loaded = load_on_all(self.checkpoints, self.rt)
        if loaded is None:
            raise error
        back, state = loaded
        self.held, self.held_at = None, back
        self.s.load_state_dict(state)
        self.attempt.verdict = judges.verdict(self.s.counters)
        self.s.counters["skip"] += nimg - back
        self.s.counters["rollbacks"] += 1
        self.saved_at, self.saved_time = back, time.monotonic()
        self.attempt.say(
            f"WARNING: DIVERGED at {nimg / 1000:g} kimg: {error}. Rolled back to {back / 1000:g} kimg; those data are "
            "skipped."
        )
        return back

    def leave(self, record: Record, nimg: int) -> int:
        """The end of an attempt, done or stopped: wait for the writer, say where things are; the exit code."""
        self.checkpoints.wait(raise_errors=True)
        self.watchdog.stop()
        if record.main:
            try:
                plot_losses({self.run.path.name: curves_of(self.run)}, self.run.plots / "losses.png")
            except OSError as error:
                self.attempt.say(f"WARNING: {self.run.plots / 'losses.png'} cannot be written ({error.strerror})")
        if not self.over(nimg):
            reason, by_person = self.watch.describe(self.level), self.level >= 3
            self.attempt.say(f"Stopped at {nimg / 1000:g} kimg ({reason}); saved. The same command goes on from here.")
            code = stopping.DONE if by_person else stopping.CONTINUE
            code = self.attempt.end(code, RunState.STOPPED if by_person else RunState.CONTINUE, reason)
        else:
            if record.main:
                record.progress.close()
                record.board.close()
                self.run.mark_done()
                self.attempt.say(f"DONE: {self.run.path} has seen {nimg / 1000:g} kimg")
                announce(self.run, self.c, self.attempt.verdict)
            reason = "finished" if nimg >= self.total else best.words(self.s.counters)
            code = self.attempt.end(stopping.DONE, RunState.DONE, reason)
        # srun kills the others once one rank has left with a code, so none leaves before rank 0 has written everything.
        try:
            collectives.agree_max(self.rt, [0])
        except ranks.PeerLost:
            if self.rt.rank != 0:
                raise
        return code


def optimizer_step(
    rt: ranks.Runtime,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    lr: float,
    clip: float,
) -> torch.Tensor:
    """Average the gradients over the ranks, undo the loss scale, clip to the norm `clip`, step at rate `lr`, in this
    order.

    Returns the norm before clipping, (). A step whose gradients are not finite is left out where fp16 scales the loss.
    """
    parameters = list(module.parameters())
    collectives.reduce_mean_gradients(rt, parameters)
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def load_on_all(checkpoints: Checkpoints, rt: ranks.Runtime) -> tuple[int, dict] | None:
    """What rank 0 finds newest is what every rank loads."""
    loaded = checkpoints.load_latest() if rt.rank == 0 else None
    nimg = collectives.from_rank_0(rt, -1 if loaded is None else loaded[0])
    if nimg < 0:
        return None
    return loaded if rt.rank == 0 else (nimg, checkpoints.load(nimg))


def load_initial_weights(s: State, names: tuple[str, ...], init_from: str, say: Callable[[str], None]) -> None:
    """Start the named networks from the newest checkpoint of another run directory."""
    start = Checkpoints(RunDir(init_from).checkpoints, say=say).load_latest()
    if start is None:
        raise specs.ConfigError(f"--init-from {init_from}: no checkpoint there; name a run directory that has one")
    try:
        for name in names:
            getattr(s, name).load_state_dict(start[1][name])
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise specs.ConfigError(f"--init-from {init_from}: another architecture ({reason})") from None
    s.counters["warm"] = start[0] + start[1].get("counters", {}).get("warm", 0)
    kimg = s.counters["warm"] / 1000
    say(f"--init-from {init_from}: its weights and their average, whose ramp-up goes on from {kimg:g} kimg")


def compiles(asked: bool, device: torch.device, run: RunDir, say: Callable[[str], None]) -> bool:
    """Whether --compile can be had: a CPU needs a C++ compiler for it. What is compiled is kept with the run, on shared
    storage, so that the next attempt finds it on whatever node it starts."""
    compiler = device.type == "cuda" or os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if asked and not compiler:
        say("warning: --compile needs a C++ compiler on a CPU, such as g++; it is left out here")
        return False
    if asked:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(run.path / "compiled"))
    return asked


def compiled(network: Callable) -> Callable:
    """torch.compile for the shapes that it meets, each on its own: with sizes left open, as torch would have them after
    the second (D sees one batch in G's step and two in its own), Inductor gives up its layouts for convolutions."""
    return torch.compile(network, dynamic=False)


def already_done(c, run: RunDir, rank: int) -> bool:
    """Whether the run is finished and --total-kimg is no larger than it was; says so.

    Raises ConfigError where it is a run of another job, or of other flags.
    """
    before = (run.read_config() or {}).get("total_kimg")
    if not run.done() or (is_number(before) and c.total_kimg > before):
        return False
    compare_with_run(run, c)
    if rank == 0:
        if run.read_status().get("state") != RunState.DONE or run.lockfile.exists():  # killed after its last image
            with contextlib.suppress(RunDirError, OSError):  # or about to end, or read-only: it is done all the same
                run.lock(wait=0)
                run.complete_marks()
                run.unlock()
        say(f"{run.path} is done. Raise --total-kimg to go on, or use another --run to start afresh.")
        announce(run, c, verdict_of(run.weights))
    return True
