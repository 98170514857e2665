"""Ends a process whose collective hangs."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

from jobs.run.stopping import TRANSIENT


class Watchdog:
    """Ends the process with code 75 when `pat()` was not called for `seconds`: a collective whose peer hangs never
    returns.

    Says so in one line and shows where every thread stands.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._last = time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def pat(self) -> None:
        """A step ended."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(self.seconds / 4, 10)):
            if time.monotonic() - self._last > self.seconds:
                print(
                    f"error: no step finished for {self.seconds:g} s; another rank or the device hangs. Ending.",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(file=sys.stderr)
                sys.stderr.flush()
                os._exit(TRANSIENT)
