"""Processes that are forked instead of started anew: `python SCRIPT WORDS` without the seconds of its imports.

A server, one per process of tests, imports torch and the toolkit once and forks on demand. What it forks runs the
script as `__main__`, with an environment, signals, output and an exit of its own. The server itself computes nothing: a
process that has differentiated must not be forked where there is a GPU.

    python tests/forks.py FD     # the server: requests in JSON, with the files to write to, over the socket FD
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("train_gan.py", "pretrain_vae.py", "train_diffusion.py", "predict.py")


class Forked:
    """What subprocess.Popen is to a process that was started: the same methods, as far as the tests call them."""

    def __init__(self, words: list, env: dict[str, str], stdout=None, stderr=None, text: bool = True):
        """`python WORDS`: a script of SCRIPTS, or `-c CODE`, with what follows.

        stdout, stderr: open files; pipes without.
        """
        self.args, self.returncode, self.stdout, self.stderr = [str(word) for word in words], None, None, None
        assert text and (self.args[0] in SCRIPTS or self.args[0] == "-c"), self.args
        files = [stdout, stderr]
        for i, name in enumerate(("stdout", "stderr")):
            if files[i] is None:
                mine, files[i] = os.pipe()
                setattr(self, name, os.fdopen(mine, errors="replace"))
        numbers = [file if isinstance(file, int) else file.fileno() for file in files]
        self.pid = _ask({"words": self.args, "env": env}, numbers)
        for file in files:
            if isinstance(file, int):
                os.close(file)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask({"wait_for": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """What it writes from now on, to its end."""
        texts: dict = {"stdout": None, "stderr": None}

        def read(name: str) -> None:
            with getattr(self, name) as pipe:
                texts[name] = pipe.read()

        readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in texts if getattr(self, name)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return texts["stdout"], texts["stderr"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(words: list, env: dict[str, str], timeout: float = 500) -> subprocess.CompletedProcess:
    """To its end; with what it wrote."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Forked(words, env, out, err)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(process.args, process.returncode, *texts)


_server: tuple[int, socket.socket, subprocess.Popen] | None = None


def _ask(request: dict, files: list[int] = ()):
    """The server's answer; it is started where there is none."""
    global _server
    if _server is None or _server[0] != os.getpid():  # a fork of this process needs one of its own
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        process = subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())], cwd=ROOT, env=env, pass_fds=[its.fileno()]
        )
        its.close()
        _server = os.getpid(), ours, process
        atexit.register(ours.close)  # upon which it leaves
    ours = _server[1]
    socket.send_fds(ours, [json.dumps(request).encode()], files)
    answer = ours.recv(100)
    assert answer, "the server of forked processes is gone"
    return json.loads(answer)


# --- the server -------------------------------------------------------------------------------------------------------
def serve(its: socket.socket) -> None:
    import_all()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the tests is not for the server
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()  # what is shared stays shared
    while True:
        message, files, _, _ = socket.recv_fds(its, 1 << 20, 2)
        if not message:
            return
        request = json.loads(message)
        if "wait_for" in request:
            pid, status = os.waitpid(request["wait_for"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                its.close()
                _become(request["words"], request["env"], files)
            for file in files:
                os.close(file)
        its.send(json.dumps(answer).encode())


def import_all() -> None:
    """What a run would import now or later, the first optimizer's torch._dynamo and the first plot's fonts included."""
    import matplotlib.pyplot as plt
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401
    import tyro  # noqa: F401

    for module in (*(script.removesuffix(".py") for script in SCRIPTS), "data.phantom", "data.latents"):
        importlib.import_module(module)
    figure = plt.figure()
    figure.add_subplot().plot([1, 2], label="x")
    figure.legend()
    figure.savefig(io.BytesIO())
    plt.close(figure)


def _become(words: list[str], env: dict[str, str], files: list[int]) -> None:
    """In the child: be the process that the command line would have started. Never returns."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in zip((0, 1, 2), (os.open(os.devnull, os.O_RDONLY), *files), strict=True):
            os.dup2(file, number)
            os.close(file)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, errors="backslashreplace") for n in (1, 2))
        os.environ.clear()
        os.environ.update(env)
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):  # as an interpreter ends
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    serve(socket.socket(fileno=int(sys.argv[1])))
