"""A headless chromium for tests that look at a page, driven over its own pipe: no package is needed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

# The rest keeps it from asking for its maker's hosts, which tests cannot reach.
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()


def chromium() -> str | None:
    """Where it is; None where there is none."""
    return shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One page of it. What it complains about (scripts, the policy of the page) is in `complaints`."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900):
        """folder: an empty one for its profile."""
        theirs, mine = os.pipe(), os.pipe()  # what they read, what I read
        # Their descriptors are 3 and 4 by custom; a shell puts them there.
        command = [chromium(), *FLAGS, f"--window-size={width},{height}", f"--user-data-dir={folder}"]
        shell = f'exec "$@" 3<&{theirs[0]} 4>&{mine[1]}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command], pass_fds=(theirs[0], mine[1]), stderr=subprocess.DEVNULL
        )
        os.close(theirs[0])
        os.close(mine[1])
        self.writes, self.reads = os.fdopen(theirs[1], "wb", 0), os.fdopen(mine[0], "rb")
        self.numbers, self.session, self.complaints, self.loaded = itertools.count(1), "", [], False
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters) -> dict:
        """The answer to one command of the DevTools protocol."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.writes.write(json.dumps(message).encode() + b"\0")
        while (said := self.next_message()).get("id") != number:
            pass
        assert "error" not in said, said
        return said["result"]

    def next_message(self) -> dict:
        """What it says next, which ends with a zero byte."""
        found = bytearray()
        while (byte := self.reads.read(1)) != b"\0":
            assert byte, "chromium has ended"
            found += byte
        said = json.loads(found)
        if said.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
            self.complaints.append(said["params"])
        self.loaded |= said.get("method") == "Page.loadEventFired"
        return said

    def open(self, url: str) -> None:
        """Go there, and wait until all of it is there."""
        self.loaded = False
        self("Page.navigate", url=url)
        while not self.loaded:
            self.next_message()

    def evaluate(self, script: str):
        """The value of a script of the page, a promise's when it is kept."""
        found = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until this is true in the page; asked at every frame, for a minute."""
        look = f"const look = () => ({condition}) ? done(true) : requestAnimationFrame(look); look();"
        script = f"new Promise(done => {{ setTimeout(done, 60000, false); {look} }})"
        assert self.evaluate(script), f"never: {condition}"

    def press(self, key: str) -> None:
        """A key, as a person presses it."""
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"ArrowRight": 39}[key])

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError, AssertionError):
            self.session = ""
            self("Browser.close")
        self.process.kill()
        self.process.wait(60)
        self.writes.close()
        self.reads.close()
