"""`launch.py --host LOGIN ...`: the same verb on a login node, through ssh; `pull`, which copies results from there.

The user's own ssh configuration and agent are used as they are; nothing is stored. LOGIN is whatever ssh takes (a host,
a Host of ~/.ssh/config, user@host), or the name of a profile of sites.toml with a `login`. Torch-free.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from data.files import atomic_write, parse_json, plain, read_object, say
from jobs.cluster import choose, serve
from jobs.cluster.choose import verb_parser
from jobs.cluster.sites import load_sites
from jobs.cluster.terminal import facts
from jobs.config.specs import ROOT, ConfigError
from jobs.run.find import typed
from jobs.run.stopping import BAD, DONE, TRANSIENT, USAGE

OPTIONS = ("--host", "--host-dir")
# What the login node runs, whatever shell the account has: $1 is the folder of the clone, the rest are arguments.
SCRIPT = (
    'cd -- "$1" 2>/dev/null && [ -f launch.py ] || '
    '{ echo "error: $1: no clone of the toolkit on this host; give --host-dir DIR" >&2; exit 2; }; shift; '
    "if [ -x .venv/bin/python ]; then p=.venv/bin/python; else p=python3; fi; "
    'exec "$p" launch.py "$@"'
)
# What `pull` copies. Not status.json and jobs.json: no job here works on the run.
PULLED = (
    "config.json", "data.json", "provenance.json", "attempts.jsonl", "metrics.jsonl", "metrics.json", "DONE",
    "*.safetensors", "*.html", "*.png", "samples/***", "plots/***", "pictures/***", "report/***", "tensorboard/***",
)  # fmt: skip
THROUGH = """sh -c 'shift; exec ssh -- "$LOGIN" "$@"' ssh"""  # in the place of ssh, for rsync
MARK = "pulled.json"  # in the copy: where it came from
PORTS = (20000, 32767)  # below those that Linux gives to connections
SSH_FAILED = 255


@dataclass(frozen=True)
class Host:
    """A login node, and the folder of the clone there, from the account's home on."""

    name: str
    folder: str

    def ssh(self, *options: str) -> list[str]:
        """ssh to it, with options."""
        return ["ssh", *options, "--", self.name]

    def command(self, argv: list[str]) -> str:
        """The one word of shell that runs launch.py there with these arguments."""
        return shlex.join(["exec", "sh", "-c", SCRIPT, "sh", self.folder, *argv])


def split(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """({--host and --host-dir that stand before a `--`}, the other words)."""
    found: dict[str, str] = {}
    cut = argv.index("--") if "--" in argv else len(argv)
    words, rest = iter(argv[:cut]), []
    for word in words:
        name, equals, value = word.partition("=")
        if name not in OPTIONS:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("-") or not value.isprintable():
            raise ConfigError(f"{name} {plain(value)}: give {'a login node' if name == '--host' else 'its folder'}")
        found[name] = value
    return found, rest + argv[cut:]


def choose_host(name: str, folder: str = "") -> Host:
    """The login node that a person means: by a profile's name, else as ssh knows it."""
    profile = load_sites().get(name)
    if profile is not None and not profile.login:
        raise ConfigError(f"--host {name}: that profile has no `login`; add it to your sites.toml, or give the host")
    under_home = ROOT.relative_to(Path.home()) if ROOT.is_relative_to(Path.home()) else Path(ROOT.name)
    folder = folder or (profile.remote_dir if profile else "") or str(under_home)
    return Host(profile.login if profile else name, folder.removeprefix("~/"))


def run_there(given: dict[str, str], argv: list[str]) -> int:
    """Run launch.py with these arguments on the login node. Returns its exit code."""
    if "--host" not in given:
        raise ConfigError("--host-dir goes with --host LOGIN")
    if shutil.which("ssh") is None:
        raise ConfigError("ssh: not found on this machine; install an OpenSSH client")
    host = choose_host(given["--host"], given.get("--host-dir", ""))
    if argv[:1] == ["pull"]:
        return pull(host, argv[1:])
    if argv[:1] == ["tensorboard"] and not {"-h", "--help"} & set(argv):
        return tensorboard(host, argv[1:])
    terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else ["-T"]
    code = subprocess.run([*host.ssh(*terminal), host.command(argv)], check=False).returncode
    return explained(code, host)


def explained(code: int, host: Host) -> int:
    """The exit code; where it is ssh's own, with a line that says so."""
    if code == SSH_FAILED:
        raise ConfigError(f"ssh to {host.name} failed; try: ssh {shlex.quote(host.name)} true")
    return code


# --- pull -------------------------------------------------------------------------------------------------------------
def pull_command(argv: list[str]) -> int:
    """`launch.py pull` without --host: from the login node of the one profile that has one."""
    if {"-h", "--help"} & set(argv):
        pull_parser().parse_args(argv)  # exits
    hosts = [name for name, site in load_sites().items() if site.login and site.remote_dir]
    if len(hosts) != 1:
        raise ConfigError(
            "pull: from where? give --host LOGIN, or a profile with login and remote_dir in your sites.toml"
        )
    return run_there({"--host": hosts[0]}, ["pull", *argv])


def pull_parser():
    """The options of `launch.py pull`."""
    about = "Copy pictures, report, curves and weights of runs from a login node (--host LOGIN) into runs/ here."
    parser = verb_parser("pull", about, "+")
    parser.add_argument("--checkpoints", action="store_true", help="the checkpoints too, to go on with the run here")
    parser.add_argument("--out", default="", metavar="DIR", help="folder to copy into (default: runs/)")
    parser.add_argument("--host", metavar="LOGIN", help="the login node, as ssh knows it, or a profile's name")
    return parser


def pull(host: Host, argv: list[str]) -> int:
    """Copy what `PULLED` names of these runs. Returns the exit code."""
    options = pull_parser().parse_intermixed_args(argv)
    if shutil.which("rsync") is None:
        raise ConfigError("rsync: not found on this machine; install it (apt-get install rsync)")
    command = [*host.ssh("-T"), host.command(["status", "--json", *options.run])]
    asked = subprocess.run(command, stdout=subprocess.PIPE, text=True, errors="replace", check=False)
    if asked.returncode:
        return explained(asked.returncode, host)
    worst = DONE
    for name, path in runs_in(asked.stdout, host):
        target = (Path(options.out).expanduser() if options.out else choose.RUNS) / name
        if taken := problem_of(target, host, path):
            say(f"error: {name}: not copied: {taken}", sys.stderr)
            worst = max(worst, USAGE)
            continue
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        mark = {"host": host.name, "path": path, "time": round(time.time(), 1)}
        atomic_write(target / MARK, json.dumps(mark) + "\n")
        wanted = [*PULLED, *(["checkpoints/***"] if options.checkpoints else [])]
        # Where a name has a colon (ssh://me@host:22, an address of IPv6) rsync does not read it as ssh does.
        shell, name_there = (THROUGH, "there") if ":" in host.name else ("ssh", host.name)
        rsync = ["rsync", "-rt", "-s", "--partial", "--no-links", "-e", shell]
        rsync += [*(f"--include=/{p}" for p in wanted), "--exclude=*"]
        environment = os.environ | {"LOGIN": host.name}
        code = subprocess.run([*rsync, f"{name_there}:{path}/", f"{target}/"], check=False, env=environment).returncode
        if code:
            say(f"error: {name}: rsync ended with code {code}; the same command goes on", sys.stderr)
            worst = max(worst, BAD)
            continue
        say(f"{name} is copied to {target}")
        facts([("pictures", f"python predict.py generate --run {typed(target)} --number 64")])
    return worst


def runs_in(text: str, host: Host) -> list[tuple[str, str]]:
    """(name, path there) of the runs in what `status --json` printed; a banner of the account may stand before it."""
    for line in reversed(text.splitlines()):
        try:
            views = parse_json(line)["runs"]
            found = [(view["name"], view["path"]) for view in views]
        except (ValueError, KeyError, TypeError):
            continue
        for name, path in found:
            if (
                not isinstance(name, str)
                or Path(name).name != name
                or name in ("", ".", "..")
                or not str(path).startswith("/")
            ):
                raise ConfigError(f"{host.name} names a run {plain(name)[:80]!r}, which is no name")
        return found
    raise ConfigError(f"{host.name} did not answer as launch.py status --json does; is the clone there as new as this?")


def problem_of(target: Path, host: Host, path: str) -> str:
    """Why the copy would be mixed with another run; '' where it is not: only what an earlier pull of the same run made
    is written over."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return ""
    mark = read_object(target / MARK, target)[0] if target.is_dir() else {}
    if (mark.get("host"), mark.get("path")) == (host.name, path):
        return ""
    return f"{target} is there already and no copy of {host.name}:{path}; move it away, or give --out DIR"


# --- tensorboard ------------------------------------------------------------------------------------------------------
def tensorboard(host: Host, argv: list[str]) -> int:
    """TensorBoard on the login node's loopback, and the tunnel to it; both end at Ctrl-C. Returns the exit code."""
    code = BAD
    for _ in range(3):  # unless the port there is taken, once is enough
        here, there = serve.free_port(), random.randint(*PORTS)
        # A terminal, also where there is none here: its end is what ends the process there.
        ssh = host.ssh("-tt", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{here}:127.0.0.1:{there}")
        words = ["tensorboard", *argv, "--port", str(there), "--no-tunnel"]
        say(f"TensorBoard on {host.name}, through a tunnel. Ctrl-C ends both.")
        facts([("open, in a moment", f"http://localhost:{here}")])
        code = until_interrupted([*ssh, host.command(words)])
        if code != TRANSIENT:
            break
    return explained(code, host)


def until_interrupted(command: list[str]) -> int:
    """Run a command that Ctrl-C, a TERM or the end of the terminal ends. Its exit code; 0 where it was ended so."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(DONE))
    try:
        return process.wait()
    except KeyboardInterrupt:
        return DONE
    finally:
        process.terminate()
        process.wait()
