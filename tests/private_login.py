"""A login node for the tests: an sshd of its own on loopback, with keys and configuration in a temporary folder."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

NEEDED = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "rsync": "rsync"}
SBIN = ":/usr/sbin:/sbin"


def require() -> None:
    """Skip the test where there is no sshd; fail where one could have been installed and the whole suite is asked for
    (CI=true)."""
    path = os.environ.get("PATH", "") + SBIN
    lacking = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if not lacking:
        return
    text = f"{', '.join(lacking)} not found (apt-get install {' '.join(sorted({NEEDED[name] for name in lacking}))})"
    if os.environ.get("CI") == "true" and os.getuid() == 0 and shutil.which("apt-get"):
        pytest.fail(text)
    pytest.skip(text)


class Login:
    """`ssh cluster` leads to this machine; `bin` holds the ssh that knows it."""

    def __init__(self, folder: Path):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            f"PidFile {folder}/sshd.pid\nPrintMotd no\n"
        )
        key = (folder / "host.pub").read_text()
        (folder / "known").write_text(f"[127.0.0.1]:{port} {key}")
        (folder / "ssh_config").write_text(
            f"Host cluster\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n IdentityFile {folder}/user\n"
            f" IdentitiesOnly yes\n UserKnownHostsFile {folder}/known\n StrictHostKeyChecking yes\n LogLevel ERROR\n"
        )
        (self.bin / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
        (self.bin / "ssh").chmod(0o755)
        self.process = self._start()

    def _start(self) -> subprocess.Popen:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where the daemon of root confines itself
        sshd = shutil.which("sshd", path=os.environ["PATH"] + SBIN)
        assert sshd
        with open(self.folder / "sshd.out", "wb") as out:
            process = subprocess.Popen([sshd, "-D", "-e", "-f", self.folder / "sshd_config"], stdout=out, stderr=out)
        end = time.monotonic() + 30
        while subprocess.run([self.bin / "ssh", "cluster", "true"], capture_output=True).returncode:
            assert process.poll() is None and time.monotonic() < end, (self.folder / "sshd.out").read_text()
            time.sleep(0.1)
        return process

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)
