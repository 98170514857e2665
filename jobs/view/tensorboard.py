"""A view of the log for TensorBoard."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.files import is_number, plain, say
from jobs.config import kinds
from jobs.config.columns import GROUPS, PLACE


# --- TensorBoard and the terminal ------------------------------------------------------------------------------------
class TensorBoard:
    """Scalars and pictures over images seen. A view: where it cannot be written, training goes on without it.

    `folder` None (ranks other than 0) makes an object that does nothing. `purge_step`: what an earlier attempt wrote
    from there on is hidden; resumed at nimg, whose row is kept, that is nimg + 1.
    """

    def __init__(self, folder: Path | None, purge_step: int | None = None, say: Callable[[str], None] = say):
        self.folder, self.say = folder, say
        self.writer: Any = None
        if folder is not None:
            threading.excepthook = _no_traceback_of_tensorboard
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._try(lambda: setattr(self, "writer", SummaryWriter(str(folder), purge_step=purge_step, flush_secs=30)))

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: a name that is no text
            self.writer = None
            reason = getattr(error, "strerror", None) or error
            self.say(
                f"WARNING: TensorBoard logs in {self.folder} cannot be written ({reason}); metrics.jsonl has every row"
            )

    def scalars(self, row: dict, nimg: int) -> None:
        """Write the columns of a log row, each under its tag, at `nimg` images."""

        def write():
            for name, value in row.items():
                if is_number(value) and name not in PLACE:
                    self.writer.add_scalar(_tag(name), value, nimg)
            self.writer.flush()  # a killed process would lose what is not flushed

        if self.writer is not None:
            self._try(write)

    def rewind(self, nimg: int) -> None:
        """After a roll-back: what was written after `nimg` is hidden, as a new attempt's purge_step hides it."""

        def write():
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            start = SessionLog(status=SessionLog.START)
            self.writer.file_writer.add_event(Event(step=nimg + 1, session_log=start))
            self.writer.flush()

        if self.writer is not None:
            self._try(write)

    def image(self, name: str, picture: Image.Image, nimg: int) -> None:
        """Write a picture at `nimg` images."""
        if self.writer is not None:
            layout = "HW" if picture.mode == "L" else "HWC"
            self._try(lambda: self.writer.add_image(name, np.asarray(picture), nimg, dataformats=layout))

    def about(self, config: dict, nimg: int) -> None:
        """The configuration, as a text and as hyperparameters: TensorBoard then has a table of the runs, in which the
        last figures of each stand beside what it was given. What differs between the runs comes first there."""

        def write():
            from torch.utils.tensorboard.summary import hparams

            rows = "".join(f"|{_cell(name)}|{_cell(value)}|\n" for name, value in sorted(config.items()))
            self.writer.add_text("config", f"|field|value|\n|---|---|\n{rows}", nimg)
            # Without the list of an experiment, of which only one run's counts, TensorBoard makes one of all runs.
            _, given, _ = hparams({name: _plain(value) for name, value in config.items()}, {})
            self.writer.file_writer.add_summary(given, nimg)
            self.writer.flush()

        if self.writer is not None:
            self._try(write)

    def close(self) -> None:
        """Flush and close the event file."""
        if self.writer is not None:
            self._try(self.writer.close)


def _no_traceback_of_tensorboard(failure, otherwise=threading.excepthook) -> None:
    """TensorBoard's writer thread dies of a full disk with a traceback; the next write says it in a line (see _try)."""
    if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard.")):
        otherwise(failure)


def _plain(value: object) -> object:
    """A value that the table of hyperparameters takes."""
    return value if is_number(value) else plain(value)


def _cell(value: object) -> str:
    """A value as a cell of a Markdown table, and as nothing else."""
    text = plain(value).replace("`", "'").replace("|", "/")
    return f"`{text}`" if text else ""


def _tag(name: str) -> str:
    """The column's group and name; a class's name is a folder's name, and a tag becomes part of a page."""
    text = re.sub(r"[^\w./-]+", "_", name)
    group = kinds.column(name).group
    place = f"{GROUPS.index(group) + 1}_" if group in GROUPS else ""  # TensorBoard sorts by name
    return f"{place}{group}/{text}"
