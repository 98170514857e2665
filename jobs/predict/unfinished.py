"""The training of a feature encoder that was interrupted goes on where it was."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data.files import say, words
from jobs.run import stopping
from jobs.training.weights import WeightsError, read_weights, write_weights
from models.encoder import States

KEEP_SECONDS = 30.0  # between two writes


class UnfinishedEncoder:
    """What models.encoder.Unfinished asks for, as a file beside the one that the encoder will have.

    about: what the training depends on besides the number of its steps. The file of another training, or a damaged one,
    is passed over with one line.
    """

    def __init__(self, path: Path, about: dict):
        self.path, self.about = path, about
        self.written, self.asked = time.monotonic(), False

    def load(self, steps: int) -> tuple[int, States] | None:
        """(steps done, state), where the file holds this very training."""
        if not self.path.exists():
            return None
        try:
            tensors, about = read_weights(self.path)
        except WeightsError:
            say(f"{self.path}: damaged, or not of this toolkit; the encoder's training begins again")
            return None
        done = about.get("done")
        if about["config"] != self.about | {"steps": steps} or not isinstance(done, int) or not 0 < done <= steps:
            say(f"{self.path}: of another training than this one; the encoder's training begins again")
            return None
        states: States = {"encoder": {}, "optimizer": {}, "draw": {}}
        for name, value in tensors.items():
            part, _, key = name.partition(".")
            states.setdefault(part, {})[key] = value
        say(f"the encoder's training goes on after step {done:,} of {steps:,}")
        return done, states

    def after(self, done: int, steps: int, states: Callable[[], States]) -> None:
        """Write now and then, and before an end that somebody asked for."""
        stop: BaseException | None = None
        if self.asked:
            stop = KeyboardInterrupt(f"the same command goes on after step {done:,} of the encoder's {steps:,}")
        try:
            stopping.raise_if_asked()
        except stopping.Stopped as error:
            stop = error
        if stop is not None or time.monotonic() - self.written >= KEEP_SECONDS:
            try:
                write_weights(self.path, states(), {"config": self.about | {"steps": steps}, "done": done})
            except OSError as error:
                say(f"WARNING: {self.path} cannot be written ({words(error)}); an interruption would begin again")
            self.written = time.monotonic()
        if stop is not None:
            raise stop

    def remove(self) -> None:
        """The encoder is there."""
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A Ctrl-C waits for the step's end, so that a whole state is kept; a second one does not. Only where Ctrl-C
        would raise at once: a training run has handlers of its own."""

        def ask(number: int, frame) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        mine = threading.current_thread() is threading.main_thread()
        mine = mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if mine:
            signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            if mine:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.asked:  # after the last step
            raise KeyboardInterrupt
