"""Who hears that a run has come to its end: done, failed, waiting for a person. Never at a requeue. Torch-free.

--notify names a mail address, or an entry under [notify] of the user's own sites.toml: the URL of a webhook, or a
command. The entry is read when the message is sent, so a secret stands in that file alone: in no batch script, log,
command line or run directory. What goes wrong is one line of warning and changes nothing; a program that hangs is given
up before Slurm's KillWait (30 s) is over.

    python -m jobs.cluster.notify RUN -- COMMAND    run it on this machine, and tell how the run ended
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from data.files import plain, say
from jobs.cluster import sites, slurm, usage
from jobs.config.specs import ConfigError
from jobs.run.find import read_jobs, typed
from jobs.run.rundir import RunDir
from jobs.run.states import RunState, Verdict

TIMEOUT_S = 10.0  # for a command or a webhook
ASK_S = 5.0  # before that, for Slurm's word on how it sends mail
ADDRESS = re.compile(r"[A-Za-z0-9._%+][A-Za-z0-9._%+-]*@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
SENDMAIL = ("sendmail", "/usr/sbin/sendmail", "/usr/lib/sendmail")


# --- when -------------------------------------------------------------------------------------------------------------
def at_end(path: Path, verdict: Verdict, why: str) -> None:
    """The end of a run's job: say what it used, and tell the user, unless the run goes on or the user stopped it."""
    if verdict.goes_on or (verdict == Verdict.STOPPED and RunDir(path).stop_requested()):
        return
    seen = RunDir(path).read_status()
    state = RunState.DIVERGED if seen.get("state") == RunState.DIVERGED else verdict.state
    tell(path, state, "" if state == RunState.DONE else str(seen.get("reason") or why))


def tell(path: Path, state: str, why: str) -> None:
    """Send one message for this end of the run, to whom it was started with. Says what goes wrong, and raises
    nothing."""
    try:
        run = RunDir(path)
        used = usage.use_line(path)
        if used:
            say(f"{path}: {used}")
        options = read_jobs(path).get("options")
        whom = options.get("notify") if isinstance(options, dict) else None
        if not isinstance(whom, str) or not whom or told_already(run, state):
            return
        problem = send(whom, path.name, state, message(path, state, why, used))
        run.note("notified", state=state, whom=whom, sent=not problem)
        if problem:
            say(f"WARNING: nobody was told that the run is {state}: {problem}", sys.stderr)
    except Exception as error:  # whatever it is, the run's own end must not suffer from it
        say(f"WARNING: nobody was told that the run is {state} ({type(error).__name__})", sys.stderr)


def told_already(run: RunDir, state: str) -> bool:
    """Whether this state was told since the last attempt began: a job that finds nothing to do ends as well."""
    for line in reversed(run.read_attempts()):
        if line.get("event") == "notified":
            return line.get("state") == state
        if line.get("event") == "start":
            return False
    return False


def message(path: Path, state: str, why: str, used: str = "") -> str:
    """What is told: the run, its state, where it is, what to type next."""
    seen = RunDir(path).read_status()
    kimg, total = seen.get("kimg"), seen.get("total_kimg")
    lines = [
        f"{path.name} is {state}" + (f": {why}" if why else ""),
        f"{kimg:g} of {total:g} kimg" if isinstance(kimg, float | int) and isinstance(total, float | int) else "",
        used,
        f"{socket.gethostname()}:{path}",
        "" if state == RunState.DONE else f"python launch.py why {typed(path)}",
    ]
    return plain("\n".join(line for line in lines if line), keep="\n") + "\n"


# --- to whom ----------------------------------------------------------------------------------------------------------
def problem_of(whom: str) -> str:
    """What is wrong with a --notify, '' if nothing is: looked at before the run is queued."""
    try:
        if not ADDRESS.fullmatch(whom):
            entry(whom)
    except (ConfigError, OSError) as error:
        return str(error)
    return ""


def entry(whom: str) -> str | list[str]:
    """The webhook's URL, or the command as words, under this name in the user's own sites.toml."""
    file, entries = sites.user_file(), sites.read_notify()
    if whom not in entries:
        known = f"there are {', '.join(entries)}" if entries else "that table is empty or missing"
        raise ConfigError(f"--notify {whom}: no mail address, and no entry under [notify] of {file} ({known})")
    value = entries[whom]
    if isinstance(value, str) and re.match(r"https?://", value):
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"{file}: others can read it, and a webhook in it is a secret: chmod 600 {file}")
        return value
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError:
        words = None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{file}: [notify] {whom} must be a URL (https://...) or a command, text or a list of words")
    return words


def send(whom: str, name: str, state: str, text: str) -> str:
    """Send the message now. What went wrong, in words without a secret; '' if it was sent."""
    try:
        if ADDRESS.fullmatch(whom):
            return mail(whom, f"{name}: {state}", text)
        value = entry(whom)
    except (ConfigError, OSError) as error:
        return plain(error)[:300]
    if isinstance(value, str):
        return f"[notify] {whom}: {problem}" if (problem := post(value, name, state, text)) else ""
    return run_command(value, text, f"the command [notify] {whom}", {"RUN": name, "STATE": state})


def mail(address: str, subject: str, text: str) -> str:
    """Through Slurm's mail program, else sendmail."""
    if program := mail_program():
        return run_command([program, "-s", subject, address], text, program)
    for name in SENDMAIL:
        if found := shutil.which(name):
            head = f"To: {address}\nSubject: {subject}\nContent-Type: text/plain; charset=utf-8\n\n"
            return run_command([found, "-i", address], head + text, name)
    return f"{socket.gethostname()} has no program that sends mail; use a command or webhook under [notify]"


def mail_program() -> str:
    """The program by which Slurm sends mail (MailProg), where it is installed here; '' otherwise."""
    try:
        text = slurm._run(["scontrol", "show", "config"], timeout=ASK_S)
    except slurm.SlurmError:
        return ""
    found = re.search(r"^MailProg\s*=\s*(/\S+)", text, re.MULTILINE)
    return found[1] if found and os.access(found[1], os.X_OK) else ""


def run_command(command: list[str], text: str, name: str, env: dict[str, str] | None = None) -> str:
    """Run it with the message on its standard input; its own output is dropped, as it may hold a secret."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=os.environ | (env or {}),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        return f"{name} could not be run ({getattr(error, 'strerror', None) or type(error).__name__})"
    try:
        process.communicate(text.encode(), TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what it has started
        process.wait()
        return f"{name} did not end within {TIMEOUT_S:g} s"
    return f"{name} ended with code {process.returncode}" if process.returncode else ""


def post(url: str, name: str, state: str, text: str) -> str:
    """Post the message as JSON, under the keys that Slack, Teams, Mattermost (text) and Discord (content) read."""
    body = json.dumps({"text": text, "content": text, "run": name, "state": str(state)}).encode()
    import urllib.error  # 0.1 s: not for --help and status
    import urllib.request

    answer = [f"the webhook did not answer within {TIMEOUT_S:g} s"]

    def work() -> None:
        try:
            headers = {"Content-Type": "application/json", "User-Agent": "brain-slices"}
            request = urllib.request.Request(url, data=body, headers=headers, method="POST")
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                answer[0] = ""
        except urllib.error.HTTPError as error:
            answer[0] = f"the webhook answered {error.code}"
        except Exception as error:  # its own words may hold the URL
            reason = getattr(error, "reason", None)
            detail = getattr(reason, "strerror", None) or type(reason or error).__name__
            answer[0] = f"the webhook could not be reached ({detail})"

    thread = threading.Thread(target=work, daemon=True)  # each read has its own timeout: a slow answer has no end
    thread.start()
    thread.join(TIMEOUT_S)
    return answer[0]


# --- on this machine --------------------------------------------------------------------------------------------------
def around(path: Path, command: list[str]) -> int:
    """Run the training process, pass signals on to it, and tell how the run ended. Its exit code."""
    child = subprocess.Popen(command)

    def pass_on(number: int, frame: object) -> None:
        child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, pass_on)
    code = child.wait()
    run = RunDir(path)
    seen = run.read_status()
    state, why = seen.get("state"), str(seen.get("reason") or "")
    if run.done():
        tell(path, RunState.DONE, "")
    elif not run.stop_requested() and not (code == 0 and state == RunState.STOPPED):
        if state == RunState.CONTINUE:
            tell(path, RunState.INTERRUPTED, f"saved ({why})")
        else:
            ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            tell(path, RunState.DIVERGED if state == RunState.DIVERGED else RunState.FAILED, why or ended)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    match sys.argv[1:]:
        case [run, "--", *command] if command:
            sys.exit(around(Path(run), command))
        case _:
            sys.exit("jobs.cluster.notify is called by launch.py")
