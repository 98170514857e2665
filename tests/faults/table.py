"""The faults: what is done, the outcome that is declared for it, and how it is injected and held to that.

Every function takes (lab, script, count, rng, name): it makes `count` injections into runs called after `name`, raises
Violation where the declared outcome did not come, and returns the number of injections that it made.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.run.stopping import BAD, CONTINUE, DONE, TRANSIENT
from tests import tiny
from tests.faults import inject
from tests.faults.attempts import (
    DIFFUSION,
    GAN,
    HANG,
    VAE,
    Attempt,
    Lab,
    Violation,
    check_attempt,
    clear,
    same_as,
    starts,
    tree,
)
from tests.faults.report import newest_whole

TRANSPARENT, REFUSED, ROLLED_BACK = "transparent", "refused", "rolled back"
KILLED = -signal.SIGKILL


@dataclass(frozen=True, eq=False)
class Fault:
    name: str
    declared: str
    inject: Callable[[Lab, str, int, random.Random, str], int]
    long: dict[str, int]  # injections per script
    short: dict[str, int]


def all_scripts(count: int) -> dict[str, int]:
    return dict.fromkeys((GAN, VAE, DIFFUSION), count)


def require(condition: object, text: str, *attempts: Attempt) -> None:
    if not condition:
        raise Violation("\n".join([text, *(a.text() for a in attempts)]))


# --- SIGKILL ----------------------------------------------------------------------------------------------------------
def sigkill(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """At moments drawn over the whole life of an attempt, its start included; every fifth run also has no packs yet."""
    done, series = 0, 0
    while done < count:
        run, series = lab.new(f"{name}-{series}"), series + 1
        packs = lab.folder / "runs" / f"{name}-packs" if series % 5 == 0 else None
        least = -1
        while done < count and not (run / "DONE").exists():
            (attempt,) = lab.start(run, script, packs=packs)
            moment, end = rng.uniform(0, lab.work(script)), time.monotonic() + HANG
            while attempt.poll() is None and attempt.work() < moment:
                require(time.monotonic() < end, f"{run.name}: hung", attempt)
                time.sleep(0.005)
            time.sleep(rng.choice((0, 0.01, 0.05)))  # it also waits, for the disk: there no work is done
            attempt.send(signal.SIGKILL)
            code = attempt.wait(60)
            require(code in (KILLED, DONE), f"{run.name}: exit code {code} after SIGKILL", attempt)
            check_attempt(run, [attempt], least)
            least = max(least, newest_whole(run))
            done += code == KILLED
        # Also after a kill between the last marks of a run that is done, which the next start completes.
        lab.finish(run, script, packs=packs)
        clear(run)
    return done


def sigkill_in_writer(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """Before each of the calls that change the disk while one checkpoint is written; `count` of them, spread evenly.

    The fourth, at 48: it is the second that removes an old one. The two steps of that removal are always among them.
    """
    counted = lab.folder / "runs" / f"{name}-steps"
    run = lab.new(f"{name}-count")

    def count_steps(rank: int) -> None:
        seen = inject.in_writer(1 << 30, lambda: None, checkpoint=4)
        inject.at(80, lambda: counted.write_text("\n".join(seen)))

    lab.attempt(run, script, hook=count_steps)
    same_as(run, lab.reference(script))
    clear(run)
    steps = counted.read_text().splitlines()
    removals = [i for i, step in enumerate(steps, 1) if step in (f"unlink {16:012d}.json", f"unlink {16:012d}.pt")]
    require(len(steps) >= 10 and len(removals) == 2, f"steps of the writer: {steps}")
    others = [i for i in range(1, len(steps) + 1) if i not in removals]
    more = max(min(count, len(steps)) - 2, 0)
    chosen = {*removals, *(others[round(i * (len(others) - 1) / max(more - 1, 1))] for i in range(more))}
    for step in sorted(chosen):
        run = lab.new(f"{name}-{step}")
        lab.attempt(run, script, expect=(KILLED,), hook=lambda rank, step=step: inject.in_writer(
            step, lambda: os.kill(os.getpid(), signal.SIGKILL), checkpoint=4))  # fmt: skip
        place = f"{run.name}: killed before {steps[step - 1]}"
        require(newest_whole(run) in (32, 48), f"{place} it has a checkpoint at {newest_whole(run)}")
        markers = sorted((run / "checkpoints").glob("*.json"))
        require(all(m.with_suffix(".pt").exists() for m in markers), f"{place} a marker without its file: {markers}")
        lab.finish(run, script)
        clear(run)
    return len(chosen)


# --- disks ------------------------------------------------------------------------------------------------------------
def full_disk(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """A small file system fills up in mid-run: for a while (transparent), or to the end (code 78, the checkpoint
    stays)."""
    made = 0
    for i in range(count):
        with inject.SmallDisk(lab.folder / "runs" / f"{name}-disk-{i}") as disk:
            if disk.folder is None:
                return quota(lab, script, count, rng, name, errno.ENOSPC)
            run, begin = disk.folder / "run", rng.choice((24, 40, 56))
            if i % 2 == 0:
                seen = lab.folder / "runs" / f"{name}-seen-{i}"

                def hook(rank, begin=begin, disk=disk, seen=seen):
                    failed = inject.failed_write()

                    def free():
                        if failed.wait(60):
                            seen.touch()
                        disk.free()

                    inject.at(begin, disk.fill)
                    inject.at(begin + 24, free)

                attempt = lab.attempt(run, script, hook=hook)
                require(seen.exists(), "no checkpoint met the full disk", attempt)
                same_as(run, lab.reference(script))
            else:
                attempt = lab.attempt(
                    run, script, hook=lambda rank, b=begin, d=disk: inject.at(b, d.fill), expect=(BAD,)
                )
                require("No space left" in attempt.text() or "are free" in attempt.text(), "no plain reason", attempt)
                require(
                    newest_whole(run) >= begin - 32, f"the checkpoints before {begin} are gone", attempt
                )  # the last is under way
                disk.free()
                lab.finish(run, script)
            made += 1
    return made


def full_disk_at_start(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """No room for the first checkpoint: refused within a step or two, not at the end; with room again the run goes
    on."""
    made = 0
    for i in range(count):
        with inject.SmallDisk(lab.folder / "runs" / f"{name}-disk-{i}") as disk:
            if disk.folder is None:
                return refused_by_the_layer(lab, script, count, name, errno.ENOSPC)
            run = disk.folder / "run"
            disk.fill()
            attempt = lab.attempt(run, script, expect=(BAD,))
            require("No space left" in attempt.text() or "are free" in attempt.text(), "no plain reason", attempt)
            require("kimg 0.016" not in attempt.text(), "trained without a checkpoint", attempt)
            require(newest_whole(run) == -1, "a checkpoint on a full disk")
            disk.free()
            lab.finish(run, script)
            made += 1
    return made


def quota(lab: Lab, script: str, count: int, rng: random.Random, name: str, number: int = errno.EDQUOT) -> int:
    """EDQUOT from every write, new name and folder of the run, for a while or to the end."""
    for i in range(count):
        run, begin = lab.new(f"{name}-{i}"), rng.choice((24, 40, 56))
        end = begin + 24 if i % 2 == 0 else 1 << 60
        expect = (DONE,) if i % 2 == 0 else (BAD,)
        seen = lab.folder / "runs" / f"{name}-seen-{i}"

        def hook(rank, begin=begin, end=end, run=run, seen=seen):
            failed = inject.failed_write()
            inject.failing_writes(run, number, begin, end)
            inject.at(begin + 24, lambda: failed.wait(60) and seen.touch())

        attempt = lab.attempt(run, script, expect=expect, hook=hook)
        require(seen.exists(), f"no checkpoint met {errno.errorcode[number]}", attempt)
        if i % 2:
            require(os.strerror(number) in attempt.text(), f"{errno.errorcode[number]} was not named", attempt)
            require(
                newest_whole(run) >= begin - 32, f"the checkpoints before {begin} are gone", attempt
            )  # the last is under way
            lab.attempt(run, script)
        same_as(run, lab.reference(script))
        clear(run)
    return count


def refused_by_the_layer(lab: Lab, script: str, count: int, name: str, number: int) -> int:
    """Where no file system can be mounted: every write below the run fails from the start on."""
    for i in range(count):
        run = lab.new(f"{name}-{i}", halfway=script if i % 2 else "")
        before = tree(run)
        attempt = lab.attempt(run, script, expect=(BAD,), hook=lambda rank, r=run: inject.failing_writes(r, number, -1))
        require(os.strerror(number) in attempt.text(), "no plain reason", attempt)
        require(tree(run) == before, "refused, but something changed")
        lab.finish(run, script)
        clear(run)
    return count


def read_only_root(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """The run root is read-only, for a new run and for a half-finished one: refused, and nothing changed."""
    made = 0
    for i in range(count):
        with inject.SmallDisk(lab.folder / "runs" / f"{name}-disk-{i}") as disk:
            if disk.folder is None:
                return refused_by_the_layer(lab, script, count, name, errno.EROFS)
            run = disk.folder / "run"
            if i % 2:
                subprocess.run(["cp", "-a", str(lab.halfway(script)), str(run)], check=True)
            before = tree(disk.folder)
            if not disk.remount("ro"):
                return made
            attempt = lab.attempt(run, script, expect=(BAD,))
            require("Read-only file system" in attempt.text(), "no plain reason", attempt)
            require(tree(disk.folder) == before, "something changed on a read-only disk")
            disk.remount("rw")
            lab.finish(run, script)
            made += 1
    return made


def eio_on_read(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """A file of a half-finished run answers EIO: the newest checkpoint is passed over, what cannot be done without is
    refused, what is only looked at is done without."""
    newest = f"{newest_whole(lab.halfway(script)):012d}"
    cases = [
        (f"{newest}.pt", DONE),
        (f"{newest}.json", DONE),
        ("/config.json", BAD),
        ("/data.json", BAD),
        ("/metrics.jsonl", TRANSIENT),
        ("/attempts.jsonl", DONE),
        ("/status.json", DONE),
        ("/provenance.json", DONE),
    ]
    if script == DIFFUSION:
        cases.append(("/vae.safetensors", TRANSIENT))
    rng.shuffle(cases)
    for file, code in cases[:count]:
        run = lab.new(f"{name}-{Path(file).name}", halfway=script)
        before = tree(run)
        attempt = lab.start(run, script, hook=lambda rank, file=file: inject.failing_reads(file))
        least = newest_whole(run) if "0000" not in file else 0
        codes = lab.wait(run, attempt, least)
        require(codes == [code], f"{file}: exit code {codes}, expected {code}", *attempt)
        if code == BAD:
            changed = {k for k, v in tree(run).items() if before.get(k) != v} - {
                "attempts.jsonl",
                "status.json",
                "provenance.json",
            }
            require(not changed and before.keys() <= tree(run).keys(), f"{file}: refused, but {changed} changed")
        lab.finish(run, script) if code else same_as(run, lab.reference(script))
        clear(run)
    return min(count, len(cases))


def pack_torn_under_the_map(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """The pack is cut short while training has it mapped: the process dies of SIGBUS, the next attempt packs anew."""
    for i in range(count):
        run, packs = lab.new(f"{name}-{i}"), lab.folder / "runs" / f"{name}-packs-{i}"
        shutil.copytree(lab.packs, packs)

        def cut(packs=packs):
            for path in packs.glob("*.pack"):
                os.truncate(path, 4096)

        lab.attempt(run, script, packs=packs, expect=(-signal.SIGBUS,), hook=lambda rank, cut=cut: inject.at(40, cut))
        lab.finish(run, script, packs=packs)
        clear(run)
    return count


# --- damaged files ----------------------------------------------------------------------------------------------------
def damaged_file(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """Each file of a half-finished run in turn is cut to half, emptied, or has one bit flipped.

    Refused where the file says what the run is (config.json, data.json, the adopted VAE) and no longer reads or no
    longer agrees with the command; transparent everywhere else.
    """
    halfway = lab.halfway(script)
    files = sorted(str(p.relative_to(halfway)) for p in halfway.rglob("*") if p.is_file() and p.stat().st_size)
    cases = [(file, how) for file in files for how in ("half", "empty", "flip")]
    rng.shuffle(cases)
    for i, (file, how) in enumerate(cases[:count]):
        run = lab.new(f"{name}-{i}", halfway=script)
        path = run / file
        content = bytearray(path.read_bytes())
        spot = rng.randrange(len(content))
        if how == "flip":
            content[spot] ^= 1 << rng.randrange(8)
        else:
            del content[0 if how == "empty" else len(content) // 2 :]
        path.write_bytes(content)
        before, least = tree(run), newest_whole(run)
        attempts = lab.start(run, script)
        (code,) = lab.wait(run, attempts, least)
        about = f"{file} ({how}, byte {spot})"
        refusable = file in ("config.json", "data.json", "vae.safetensors")
        require(code == DONE or (code == BAD and refusable), f"{about}: exit code {code}", *attempts)
        if code == BAD:
            changed = {k for k in before.keys() | tree(run).keys() if before.get(k) != tree(run).get(k)}
            require(not changed, f"{about}: refused, but {sorted(changed)} changed", *attempts)
            require(
                Path(file).name in attempts[0].text() or "--" in attempts[0].text(), f"{about}: not named", *attempts
            )
            shutil.copyfile(halfway / file, path)
            lab.attempt(run, script)
        if file.startswith("checkpoints/") and file.split("/")[1].split(".")[0] == f"{newest_whole(halfway):012d}":
            require("damaged" in attempts[0].text(), f"{about}: not said", *attempts)
        if file == "metrics.jsonl":  # a row that is lost stays lost: it is a log, not the state
            require(tiny.weights_hash(run) == tiny.weights_hash(lab.reference(script)), f"{about}: other weights")
        else:
            same_as(run, lab.reference(script))
        clear(run)
    return min(count, len(cases))


def damaged_cache(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """Each file of the cache of packs and latents in turn is cut or has one bit flipped: it is made anew."""
    cases = [
        (p.name, how)
        for p in sorted(lab.packs.iterdir())
        for how in ("half", "flip")
        if script == DIFFUSION or p.suffix == ".pack"
    ]
    rng.shuffle(cases)
    for i, (file, how) in enumerate(cases[:count]):
        run, packs = lab.new(f"{name}-{i}"), lab.folder / "runs" / f"{name}-packs-{i}"
        shutil.copytree(lab.packs, packs)
        content = bytearray((packs / file).read_bytes())
        if how == "flip":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            del content[len(content) // 2 :]
        (packs / file).write_bytes(content)
        lab.finish(run, script, packs=packs)
        clear(run)
    return min(count, len(cases))


# --- time and locks ---------------------------------------------------------------------------------------------------
def clock_jump(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """The wall clock jumps by a day or by ten years, back or forth, while the run trains and between two attempts."""
    for i in range(count):
        run = lab.new(f"{name}-{i}", halfway=script)
        seconds = rng.choice((-1, 1)) * rng.choice((86400, 10 * 365 * 86400))
        for path in run.rglob("*"):
            os.utime(path, (time.time() - seconds, time.time() - seconds))
        attempt = lab.attempt(run, script, hook=lambda rank, s=seconds: inject.clock_jump(72, s))
        same_as(run, lab.reference(script))
        require("resuming" in attempt.text(), "did not resume", attempt)
        clear(run)
    return count


def two_processes(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """Two processes start on one run at nearly the same moment, over a dead process's lock: one trains, one is
    refused."""
    for i in range(count):
        run = lab.new(f"{name}-{i}", halfway=script if i % 2 else "")
        least = newest_whole(run)
        pair = lab.start(run, script)
        time.sleep(rng.choice((0.0, 0.05, 0.5)))
        pair += lab.start(run, script)
        codes = [attempt.wait() for attempt in pair]
        for attempt in pair:
            check_attempt(run, [attempt], least)
        require(sorted(codes) == [DONE, BAD], f"exit codes {codes}", *pair)
        loser = pair[codes.index(BAD)]
        require("in use by process" in loser.text(), "the refusal does not say why", loser)
        same_as(run, lab.reference(script))
        clear(run)
    return count


def lock_of_a_dead_host(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """A lock of a host that is gone: taken at once when its heartbeat is old, else once it has been silent long
    enough."""
    for i in range(count):
        run = lab.new(f"{name}-{i}", halfway=script)
        holder = {
            "token": f"{rng.randrange(1 << 64):016x}",
            "host": "node-of-old",
            "space": "pid:[1]",
            "pid": 1,
            "start": "7",
            "job": "12",
            "since": 0.0,
        }
        (run / "LOCK").write_text(json.dumps(holder))
        if i % 2 == 0:
            os.utime(run / "LOCK", (time.time() - 3600,) * 2)
        lab.finish(run, script, hook=lambda rank: inject.impatient_lock(2.0))
        clear(run)
    return count


# --- divergence -------------------------------------------------------------------------------------------------------
def nan_gradient(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """NaN in one gradient: rolled back once, the same weights each time, with SIGKILL before and after it too."""
    place, expected = 40, None
    for i in range(count):
        run = lab.new(f"{name}-{i}")

        def hook(rank, kill=0):
            inject.nan_gradient(script, place)
            if kill:
                inject.kill_at(kill)

        for kill in ((), (32, 64), (24,))[i % 3]:
            lab.attempt(run, script, expect=(KILLED,), hook=lambda rank, k=kill: hook(rank, k))
        attempt = lab.attempt(run, script, hook=hook)
        require("DIVERGED" in lab.said(run) and "Rolled back" in lab.said(run), "the divergence was not said", attempt)
        found = (tiny.weights_hash(run), tiny.rows(run))
        require(found[0] != tiny.weights_hash(lab.reference(script)), "nothing was skipped")
        require(expected in (None, found), f"{run.name}: a roll-back that is not deterministic")
        expected = found
        clear(run)
    return count


# --- ranks ------------------------------------------------------------------------------------------------------------
def rank_killed(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """One of two ranks is killed: the other leaves by itself with code 75 within seconds."""
    for i in range(count):
        run, victim = lab.new(f"{name}-{i}"), rng.randrange(2)
        place = rng.choice((8, 32, 56, 88))
        pair = lab.start(run, script, ranks=2, hook=lambda rank, v=victim, p=place: rank == v and inject.kill_at(p))
        codes = lab.wait(run, pair, seconds=60)
        require(codes[victim] == KILLED and codes[1 - victim] == TRANSIENT, f"exit codes {codes}", *pair)
        require("another rank is gone" in pair[1 - victim].text(), "no plain line", pair[1 - victim])
        lab.finish(run, script, ranks=2)
        clear(run)
    return count


def rank_stopped(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """One of two ranks is stopped (SIGSTOP): the other gives up after its patience, with code 75; woken, it leaves
    too."""
    for i in range(count):
        run, victim = lab.new(f"{name}-{i}"), i % 2
        place = rng.choice((16, 40, 72))

        def hook(rank, victim=victim, place=place):
            inject.short_patience(6)
            if rank == victim:
                inject.kill_at(place, signal.SIGSTOP)

        pair = lab.start(run, script, ranks=2, hook=hook)
        code = pair[1 - victim].wait(90)
        require(code == TRANSIENT, f"exit code {code} of the rank that waited", *pair)
        pair[victim].send(signal.SIGCONT)
        codes = lab.wait(run, pair, seconds=60)
        require(codes[victim] == TRANSIENT, f"exit codes {codes} after SIGCONT", *pair)
        lab.finish(run, script, ranks=2)
        clear(run)
    return count


# --- signals ----------------------------------------------------------------------------------------------------------
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def signal_in_import(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """A real process gets Slurm's signal while Python or torch is being imported: code 85, or death by it in the first
    moment; the run goes on from there."""
    for i in range(count):
        run, number = lab.new(f"{name}-{i}"), rng.choice(STOPS)
        flags = lab.flags(script)[len(tiny.FLAGS[script]) :]
        (process,) = tiny.start(run, *flags, packs=lab.packs, script=script, anew=True)  # a forked one has imported
        time.sleep(rng.uniform(0.05, 2.5))
        process.send_signal(number)
        (code,) = tiny.finish([process], 120)
        text = tiny.output(run)
        Path(f"{run}.0.out").unlink()
        require(code in (CONTINUE, -number), f"exit code {code} after {number.name}\n{text}")
        require("Traceback" not in text, f"a traceback after {number.name}\n{text}")
        lab.finish(run, script)
        clear(run)
    return count


def signal_in_compile(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """Slurm's signal arrives while torch.compile traces the first step (in which it once replaced the handlers)."""
    module = {GAN: "train_gan", VAE: "pretrain_vae", DIFFUSION: "train_diffusion"}[script]

    def compiled(rank, number=None):
        import torch

        real, sent = torch.compile, []

        def backend(graph, inputs):
            if number and not sent:
                sent.append(os.kill(os.getpid(), number))
            return graph

        torch.compile = lambda model, **how: real(model, backend=backend, **how)
        __import__(module).compiles = lambda *args: True

    whole = lab.new(f"{name}-whole")
    lab.attempt(whole, script, hook=compiled)
    for i in range(count):
        run = lab.new(f"{name}-{i}")
        attempt = lab.attempt(run, script, hook=lambda rank, n=STOPS[i % 3]: compiled(rank, n), expect=(CONTINUE,))
        require("saved" in attempt.text(), "stopped without a save", attempt)
        lab.attempt(run, script, hook=compiled)
        same_as(run, whole)
        clear(run)
    clear(whole)
    return count


def signal_in_checkpoint(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """Slurm's signal arrives at a step of the checkpoint writer: code 85, saved."""
    for i in range(count):
        run, step = lab.new(f"{name}-{i}"), rng.randrange(1, 9)
        attempt = lab.attempt(
            run,
            script,
            expect=(CONTINUE,),
            hook=lambda rank, n=STOPS[i % 3], s=step: inject.in_writer(s, lambda: os.kill(os.getpid(), n)),
        )
        require("saved" in attempt.text() and newest_whole(run) >= 16, "stopped without a save", attempt)
        lab.finish(run, script)
        clear(run)
    return count


def signal_twice(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """A second signal while the save of the first is under way: Slurm's change nothing, a second Ctrl-C ends at
    once."""
    for i in range(count):
        run = lab.new(f"{name}-{i}")
        first, second = (signal.SIGINT, signal.SIGINT) if i % 3 == 2 else (rng.choice(STOPS), signal.SIGTERM)

        def hook(rank, first=first, second=second):
            inject.in_writer(3, lambda: os.kill(os.getpid(), second), checkpoint=3)
            inject.at(24, lambda: os.kill(os.getpid(), first))

        attempt = lab.attempt(run, script, hook=hook, expect=(130,) if first == signal.SIGINT else (CONTINUE,))
        if first != signal.SIGINT:
            require("saved" in attempt.text(), "stopped without a save", attempt)
        lab.finish(run, script)
        clear(run)
    return count


def signal_to_the_tree(lab: Lab, script: str, count: int, rng: random.Random, name: str) -> int:
    """Slurm signals every process of the job: two ranks, in training or while rank 0's threads pack: all leave with
    85."""
    for i in range(count):
        run, number = lab.new(f"{name}-{i}"), STOPS[i % 3]
        packs = lab.folder / "runs" / f"{name}-packs-{i}" if i % 2 else lab.packs
        pair = lab.start(run, script, ranks=2, packs=packs)
        tiny.wait_until(lambda p=packs, r=run, a=pair: a[0].poll() is not None or (
            starts(r) if p == lab.packs else p.exists()), 120)  # fmt: skip
        time.sleep(rng.uniform(0, 0.5))
        for attempt in pair:
            attempt.send(number)
        codes = lab.wait(run, pair, seconds=60)
        require(codes == [CONTINUE] * 2, f"exit codes {codes}", *pair)
        lab.finish(run, script, ranks=2, packs=packs)
        clear(run)
    return count


FAULTS = [
    Fault("SIGKILL at a random moment", TRANSPARENT, sigkill, {GAN: 68, VAE: 66, DIFFUSION: 66}, all_scripts(2)),
    Fault(
        "SIGKILL at a step of the checkpoint writer",
        TRANSPARENT,
        sigkill_in_writer,
        {GAN: 99, VAE: 99, DIFFUSION: 99},
        {GAN: 4},
    ),
    Fault("ENOSPC in mid-run", TRANSPARENT, full_disk, all_scripts(4), {VAE: 1}),
    Fault("ENOSPC at the start", REFUSED, full_disk_at_start, all_scripts(2), {}),
    Fault("EDQUOT on every write", TRANSPARENT, quota, all_scripts(4), {GAN: 1}),
    Fault("EIO on read", f"{TRANSPARENT} or {REFUSED}, by file", eio_on_read, all_scripts(9), {DIFFUSION: 2}),
    Fault(
        "a file of the run cut, emptied or with a bit flipped",
        f"{TRANSPARENT} or {REFUSED}, by file",
        damaged_file,
        all_scripts(99),
        {VAE: 3},
    ),
    Fault(
        "a file of the cache cut or with a bit flipped",
        TRANSPARENT,
        damaged_cache,
        {GAN: 4, DIFFUSION: 20},
        {DIFFUSION: 1},
    ),
    Fault("the pack cut while it is mapped", TRANSPARENT, pack_torn_under_the_map, {GAN: 2, VAE: 2}, {}),
    Fault("the clock jumps", TRANSPARENT, clock_jump, all_scripts(4), {GAN: 1}),
    Fault("a read-only run root", REFUSED, read_only_root, all_scripts(2), {VAE: 1}),
    Fault("two processes on one run", f"{TRANSPARENT}, the second {REFUSED}", two_processes, all_scripts(4), {GAN: 1}),
    Fault("a lock of a dead host", TRANSPARENT, lock_of_a_dead_host, all_scripts(4), {VAE: 1}),
    Fault("NaN in one gradient", ROLLED_BACK, nan_gradient, all_scripts(6), {GAN: 2}),
    Fault("one of two ranks killed", TRANSPARENT, rank_killed, all_scripts(4), {DIFFUSION: 1}),
    Fault("one of two ranks stopped (SIGSTOP)", TRANSPARENT, rank_stopped, all_scripts(2), {GAN: 1}),
    Fault("a signal during import", TRANSPARENT, signal_in_import, all_scripts(8), {VAE: 1}),
    Fault("a signal during compile", TRANSPARENT, signal_in_compile, all_scripts(3), {}),
    Fault("a signal during a checkpoint", TRANSPARENT, signal_in_checkpoint, all_scripts(6), {DIFFUSION: 1}),
    Fault("a second signal during the save", TRANSPARENT, signal_twice, all_scripts(6), {GAN: 1}),
    Fault("a signal to the whole tree", TRANSPARENT, signal_to_the_tree, all_scripts(4), {VAE: 1}),
]
