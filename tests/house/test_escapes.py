"""Text that others wrote, wherever it is shown: on a terminal, in a log, in TensorBoard, on a page, in a picture. What
does not print is spelled out, so that it moves no cursor, sets no title, and turns no direction of writing."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from data.files import plain, say, words
from data.pack import ensure_held_out, ensure_pack
from data.pack import main as pack_main
from data.packfile import open_pack
from data.walk import DataError
from jobs.cluster import requeue, serve, show, slurm, status, submit, terminal, why
from jobs.cluster.preflight import Check
from jobs.config.specs import ConfigError, GanConfig
from jobs.predict.trained import checked_about
from jobs.run.attempt import Attempt, report_and_code
from jobs.run.find import read_sweep
from jobs.run.rundir import RunDir
from jobs.run.states import Verdict
from jobs.training.told import announce
from jobs.view.figures import print_figures
from jobs.view.markup import escape
from jobs.view.plots import Curves, draw_losses, label_of
from jobs.view.progress import Progress
from jobs.view.report import write_page
from jobs.view.tensorboard import _tag

# What is sent to a terminal, and how it is spelled. Worked out by hand from the Unicode numbers.
EVIL = {
    "clear the screen": ("\x1b[2J", "\\x1b[2J"),
    "set the title": ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
    "write the clipboard": ("\x1b]52;c;cm0=\x1b\\", "\\x1b]52;c;cm0=\\x1b\\"),
    "a link": ("\x1b]8;;http://x\x1b\\y", "\\x1b]8;;http://x\\x1b\\y"),
    "one-byte CSI": ("\x9b31m", "\\x9b31m"),
    "one-byte OSC": ("\x9d0;owned\x9c", "\\x9d0;owned\\x9c"),
    "over the line": ("done\rerror", "done\\rerror"),
    "backspace": ("ok\x08\x08no", "ok\\x08\\x08no"),
    "bell and null": ("\x07\x00", "\\x07\\x00"),
    "delete": ("\x7f", "\\x7f"),
    "from right to left": ("\u202egnp.exe", "\\u202egnp.exe"),
    "isolates": ("\u2066a\u2069\u2067\u2068", "\\u2066a\\u2069\\u2067\\u2068"),
    "marks": ("\u200e\u200f\u061c\u202a\u202b\u202c\u202d", "\\u200e\\u200f\\u061c\\u202a\\u202b\\u202c\\u202d"),
    "line ends": ("a\u2028b\u2029c\x85d\x0be\x0cf", "a\\u2028b\\u2029c\\x85d\\x0be\\x0cf"),
    "separators": ("\x1c\x1d\x1e\x1f", "\\x1c\\x1d\\x1e\\x1f"),
    "no width": ("a\u200bb\ufeffc\u2060d", "a\\u200bb\\ufeffc\\u2060d"),
    "half a character": ("\ud800\udcff", "\\ud800\\udcff"),
    "tags": ("\U000e0041\U000e007f", "\\U000e0041\\U000e007f"),
    "private": ("\ue000\uffff", "\\ue000\\uffff"),
}
ALL = "".join(text for text, _ in EVIL.values())


def only_plain(text: str, lines: int | None = None) -> None:
    """Nothing but printable characters, tabs and line ends reached the terminal."""
    odd = {c for c in text if not c.isprintable() and c not in "\n\t"}
    assert not odd, (odd, text)
    assert lines is None or len(text.splitlines()) == lines, text


# --- the rule ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", EVIL)
def test_what_does_not_print_is_spelled_out(name):
    text, expected = EVIL[name]
    assert plain(text) == expected and plain(f"a {text} b") == f"a {expected} b"


def test_what_prints_stays_as_it_is():
    for text in ("", "AD", "Zürich, 日本語, ελληνικά, العربية", "a\\x1b is a name", "x" * 10_000, "😀 é"):
        assert plain(text) == text
    assert plain("a\tb\nc\x1b", keep="\n\t") == "a\tb\nc\\x1b" and plain("a\tb\n") == "a\\tb\\n"
    assert plain(7) == "7" and plain(None) == "None"


def test_say_writes_lines(capsys):
    say(f"a\n{ALL}\tb")
    say(ALL, sys.stderr)
    out, err = capsys.readouterr()
    only_plain(out, 2)
    only_plain(err, 1)


def test_words_of_an_error_are_one_short_line():
    assert words(OSError(2, "No such\x1b file")) == "No such\\x1b file"
    assert words(ValueError(ALL * 50)).isprintable() and len(words(ValueError("x" * 999))) == 200


# --- launch.py --------------------------------------------------------------------------------------------------------
@pytest.fixture
def on_a_terminal(monkeypatch):
    """As on a terminal that shows colours: the toolkit's own escapes are there, and taken out by `without_colours`."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[(0|1|3[1-4]|90)m", "", text)


def hostile_run(folder: Path, name: str = "run") -> RunDir:
    """Every text of it is ALL, as somebody with an editor may have written it."""
    run = RunDir(folder / name)
    run.create()
    writable = ALL.encode(errors="ignore").decode()
    (run.path / "status.json").write_text(json.dumps({k: writable for k in ("state", "reason", "job_id", "host")}))
    lines = [
        {"event": "start", "attempt": 1, "node": writable, "job_id": writable},
        {"event": "end", "attempt": 1, "reason": writable, "code": writable},
        {"event": "decision", "decision": writable, "why": writable},
    ]
    run.attempts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.write_config({"data": writable, "preset": writable, "resolution": writable})
    (run.path / "provenance.json").write_text(json.dumps({writable: writable, "device": writable}))
    run.metrics.write_text(
        json.dumps({"nimg": 8, "loss_D": 0.5, writable: writable, f"diversity_{writable}": 0.5}) + "\n"
    )
    return run


def test_status_and_why_of_a_hostile_run(tmp_path, capsys, on_a_terminal):
    run = hostile_run(tmp_path, "a\x1b[2Jb\u202ec")
    view, cause = why.explain(run.path, None)
    show.show_runs([view])
    show.show_run(view, run.path)
    terminal.facts([("cause", cause.text), ("line", cause.line), (ALL, ALL)])
    terminal.error(ALL)
    terminal.say_checks([Check("fail", ALL, ALL)])
    terminal.table(["A", ALL], [[ALL, ALL], ["b", "c"]], {0: {"b": "red"}}, right={ALL})
    print(terminal.paint(ALL, "red"))
    out, err = capsys.readouterr()
    only_plain(without_colours(out))
    only_plain(without_colours(err), 1)
    assert "a\\x1b[2Jb\\u202ec" in out and "\\u202egnp.exe" in out


def test_columns_are_as_wide_as_what_is_shown(capsys):
    terminal.table(["A", "B"], [["\x1b", "Q"], ["yyyyyy", "R"]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["A", "B"], ["\\x1b", "Q"], ["yyyyyy", "R"]]
    assert [line.index(word) for line, word in zip(lines, "BQR", strict=True)] == [8, 8, 8]


def test_slurms_own_texts_are_made_plain(tmp_path, capsys, monkeypatch):
    """Another user's job name, a node's reason, the words of an administrator's plugin."""
    evil = ALL.replace(slurm.FIELD, "").replace(slurm.RECORD, "").encode(errors="ignore").decode()
    row = [
        "7",
        "PENDING",
        evil,
        "u",
        evil,
        evil,
        "1:02",
        "4:00:00",
        "N/A",
        "N/A",
        evil,
        evil,
        evil,
        str(tmp_path / "run" / "code"),
    ]
    jobs = slurm.parse_squeue(slurm.FIELD.join(row) + slurm.RECORD)
    run = hostile_run(tmp_path)
    view, cause = why.explain(run.path, jobs)
    show.show_runs([view])
    terminal.facts([("cause", cause.text), ("fix", cause.fix)])
    only_plain(capsys.readouterr().out)
    said = slurm._one_line(f"sbatch: error: {ALL}")
    assert said.isprintable()
    monkeypatch.setattr(status.slurm, "squeue", lambda: (_ for _ in ()).throw(slurm.SlurmError(evil)))
    monkeypatch.setattr(status.shutil, "which", lambda name: "/bin/true")
    assert isinstance(status.all_jobs(), status.Silent)
    only_plain(capsys.readouterr().err, 1)


def test_logs_hold_no_escapes(tmp_path, capsys):
    run = hostile_run(tmp_path)
    log = run.logs / "1.out"
    log.write_bytes(f"error: {ALL}\nline\ttab\r\nbar 1\rbar 2\x1b[A\n".encode(errors="replace"))
    for text in (why.tail(log), why.clean(ALL), why.last_error(why.tail(log))):
        only_plain(text)
    assert why.tail(log).endswith("line\ttab\nbar 1\nbar 2\n")
    show.Follower(run.path, at_end=False).show()
    only_plain(capsys.readouterr().out)
    assert "\\u202e" in why.clean("\u202e") and "\\u2028" in why.clean("\u2028")


def test_launch_py_names_hostile_folders_in_one_line(tmp_path):
    for name in ("abc\x1b[2J\u202e", "abd\x9bx\n"):
        hostile_run(tmp_path, name)
    code = (
        f"import launch, pathlib, sys; launch.choose.RUNS = pathlib.Path({str(tmp_path)!r})\n"
        "try: sys.exit(launch.main(sys.argv[1:]))\n"
        "except LookupError as error: launch.terminal.error(error.args[0])"
    )
    for command in (
        ["status"],
        ["status", "ab"],
        ["status", "nothing"],
        ["status", "abd\x9bx\n"],
        ["why", "abc"],
        ["stop", "abc"],
        ["logs", "abc"],
        ["status", "--json"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=tiny.ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env=tiny.environment(tmp_path, PATH="/usr/bin:/bin"),
        )
        assert "Traceback" not in done.stderr, done.stderr
        only_plain(done.stdout + done.stderr)


def test_a_sweep_of_unprintable_runs_is_none(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"points": [{"values": {"lr": "1"}, "run": "/a\x1b[2J"}]}))
    assert read_sweep(tmp_path) is None


def test_what_the_requeueing_says_is_plain(tmp_path, capsys, monkeypatch):
    run = hostile_run(tmp_path, "a\x1b[2Jb")
    monkeypatch.setenv("SLURM_JOB_ID", "")
    (run.path / "STOP").touch()
    requeue.finish(run.path, 85)
    requeue._nothing_to_do(f"{run.path} {ALL}")
    requeue._try(lambda: (_ for _ in ()).throw(slurm.SlurmError(ALL)))
    submit.write_state(run.path, "waiting", "x")
    out, err = capsys.readouterr()
    only_plain(out + err)
    assert "a\\x1b[2Jb" in out and Verdict.STOPPED in out


def test_what_tensorboard_says_is_plain(capsys):
    code = f"import sys; sys.stderr.buffer.write({ALL.encode(errors='replace')!r})"
    serve.serve([sys.executable, "-c", code])
    only_plain(capsys.readouterr().err)


# --- training ---------------------------------------------------------------------------------------------------------
def test_lines_of_a_training_log_are_plain(tmp_path, capsys):
    attempt = Attempt(RunDir(tmp_path / "run"), GanConfig(), 0)
    attempt.say(f"warning: {ALL}")
    said: list[str] = []
    attempt.printer = said.append
    attempt.say(f"class {ALL}")
    only_plain(said[0], 1)
    Progress(8, 0, interactive=False).write(ALL)
    announce(RunDir(tmp_path / "a\x1b[2Jb"), GanConfig(), ALL)

    def fail():
        raise ConfigError(ALL)

    assert report_and_code(fail) == 78
    out, err = capsys.readouterr()
    only_plain(out)
    only_plain(err, 1)


def test_tags_of_tensorboard_are_plain():
    only_plain(_tag(f"diversity_{ALL}"), 1)


# --- packs ------------------------------------------------------------------------------------------------------------
PREAMBLE = struct.Struct("<8sIIQQ32s")


@pytest.fixture(scope="module")
def good_pack(tmp_path_factory) -> bytes:
    """A pack of a few phantoms, as bytes."""
    folder = tmp_path_factory.mktemp("good")
    made = ensure_pack("phantom:6", resolution=32, split="all", cache_dir=folder, log=lambda *_: None, progress=False)
    return Path(made.path).read_bytes()


def resealed(good: bytes, path: Path, text: bytes | None = None, **changed) -> Path:
    """The pack with another header whose hash is right, as a stranger would make it."""
    magic, version, zero, length, offset, _ = PREAMBLE.unpack_from(good)
    head = json.loads(good[PREAMBLE.size : PREAMBLE.size + length])
    text = text or json.dumps(head | changed).encode()
    preamble = PREAMBLE.pack(magic, version, zero, len(text), offset, hashlib.sha256(text).digest())
    path.write_bytes((preamble + text).ljust(offset, b" ") + good[offset:])
    return path


def head_of(good: bytes) -> dict:
    return json.loads(good[PREAMBLE.size : PREAMBLE.size + PREAMBLE.unpack_from(good)[3]])


def test_a_crafted_pack_sends_no_escapes_to_the_terminal(good_pack, tmp_path, capsys):
    evil = ALL.encode(errors="ignore").decode()
    head = head_of(good_pack)
    meta = head["meta"] | {
        "describe": evil,
        "split": evil,
        "warnings": [evil],
        "bad": [[evil, evil]],
        "bad_count": 1,
        "key": evil,
    }
    path = resealed(
        good_pack,
        tmp_path / "evil\x1b[2J.pack",
        meta=meta,
        names=[evil] * len(head["labels"]),
        subjects=[evil] * len(head["labels"]),
    )
    assert pack_main([str(path)]) == 0
    ensure_pack(str(path), resolution=32, split="all", progress=False)
    ensure_held_out(str(path), "none", resolution=32, progress=False)
    with pytest.raises(DataError):
        ensure_pack(str(path), resolution=64, split="all", progress=False)
    assert pack_main([str(tmp_path / "none\x1b[2J.pack")]) == 78
    out, err = capsys.readouterr()
    only_plain(out)
    only_plain(err, 1)
    assert "\\x1b]0;owned" in out


@pytest.mark.parametrize(
    "name", ["clear the screen", "one-byte CSI", "from right to left", "line ends", "over the line"]
)
def test_a_pack_with_unprintable_class_names_is_refused_before_training(good_pack, tmp_path, name):
    """By the rule by which weights with such classes are refused."""
    head = head_of(good_pack)
    path = resealed(good_pack, tmp_path / "evil.pack", classes=["AD", EVIL[name][0]], labels=[0] * len(head["labels"]))
    for read in (open_pack, lambda path: ensure_pack(str(path), resolution=32, split="all", progress=False)):
        with pytest.raises(DataError, match=r"its class .* cannot be shown") as error:
            read(path)
        assert str(error.value).isprintable()
    with pytest.raises(ConfigError, match="its list of classes is malformed"):
        checked_about(path, {"classes": ["AD", EVIL[name][0]]})
    honest = resealed(
        good_pack, tmp_path / "good.pack", classes=["AD", "Zürich 日本"], labels=[0] * len(head["labels"])
    )
    assert (
        open_pack(honest).classes == ["AD", "Zürich 日本"] == checked_about(path, {"classes": ["AD", "Zürich 日本"]})[0]
    )


def test_training_on_a_pack_with_unprintable_classes_ends_with_one_line(good_pack, tmp_path):
    head = head_of(good_pack)
    path = resealed(good_pack, tmp_path / "evil.pack", classes=["\x1b[2J"], labels=[0] * len(head["labels"]))
    run = tmp_path / "run"
    assert tiny.train(run, "--data", str(path), "--conditional", packs=tmp_path) == 78
    said = tiny.output(run)
    only_plain(said)
    assert "cannot be shown" in said and "Traceback" not in said and not (run / "weights.safetensors").exists()


@pytest.mark.parametrize("where", ["names", "subjects", "describe", "warnings", "bad"])
def test_half_a_character_in_a_pack_is_one_line(good_pack, tmp_path, where):
    head = head_of(good_pack)
    odd = "a\ud800b"
    changed = {
        "names": {"names": [odd] * len(head["labels"])},
        "subjects": {"subjects": [odd] * len(head["labels"])},
        "describe": {"meta": head["meta"] | {"describe": odd}},
        "warnings": {"meta": head["meta"] | {"warnings": [odd]}},
        "bad": {"meta": head["meta"] | {"bad": [[odd, odd]]}},
    }
    path = resealed(good_pack, tmp_path / "evil.pack", **changed[where])
    with pytest.raises(DataError, match="not a valid pack"):
        open_pack(path)


def test_numbers_of_a_pack_are_finite_and_its_header_is_shallow(good_pack, tmp_path):
    head = json.dumps(head_of(good_pack))
    assert '"bad_count": 0' in head
    for text in (
        head.replace('"bad_count": 0', '"bad_count": NaN'),
        "[" * 3000,
        head.replace('"bad_count": 0', '"more": 1e999, "bad_count": 0'),
    ):
        with pytest.raises(DataError, match="not a valid pack"):
            open_pack(resealed(good_pack, tmp_path / "evil.pack", text.encode()))


# --- predict.py, pages, pictures --------------------------------------------------------------------------------------
def test_predict_py_says_what_is_wrong_in_one_plain_line(tmp_path, capsys, monkeypatch):
    import predict
    from jobs.predict.named import UsageError

    for error in (ConfigError(ALL), UsageError(ALL), DataError(ALL), OSError(2, ALL, ALL)):

        def fail(args, error=error):
            raise error

        monkeypatch.setitem(predict.PAGES, "plot", fail)
        assert predict.main(argparse.Namespace(command="plot", batch=1)) in (2, 78)
        only_plain(capsys.readouterr().err, 1)


def test_figures_for_a_person_are_plain(capsys):
    figures = {
        "distances": {ALL: dict.fromkeys("fid fid_error kid kid_sd precision recall density coverage".split(), 1.0)},
        "ms_ssim": {ALL: {ALL: {"mean": 0.5}}},
        "copying": {ALL: {"below_5th_percentile": 0.5, "relative_ratio": 1.0}},
    }
    print_figures(figures, ALL, {"heldout": {"describe": ALL}}, [ALL])
    only_plain(capsys.readouterr().out)


def test_a_report_of_a_hostile_run_spells_everything_out(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.view.report.draw_panels", lambda runs: [])
    run = hostile_run(tmp_path, "a\x1b[2Jb\u202ec")
    page = write_page([run, hostile_run(tmp_path, "other")])
    only_plain(page)
    page.encode()
    assert "a\\x1b[2Jb\\u202ec" in page and "\\u2066a\\u2069" in page
    assert escape("<b>\x1b\ud800</b>\n") == "&lt;b&gt;\\x1b\\ud800&lt;/b&gt;\n"


def test_names_in_a_picture_are_text_and_no_formula():
    assert label_of("$\\frac$ \u202e $") == "\\$\\frac\\$ \\u202e \\$"
    assert label_of("_hidden_name") == " _hidden_name"  # matplotlib would leave it out of the legend
    rows = Curves([{"nimg": n, "loss_D": 0.5, "loss_G": 0.25} for n in (0, 8)], [0.004])
    picture = draw_losses({"a $\\frac$ b": rows, "\x1b[2J \u202e": rows, "_hidden": rows})
    assert picture.startswith(b"\x89PNG")


# --- no place forgotten -----------------------------------------------------------------------------------------------
ROOM = tiny.ROOT
SOURCES = sorted([*(ROOM / "jobs").glob("**/*.py"), *ROOM.glob("*.py"), ROOM / "data" / "pack.py"])
RAW = {  # print() where no text of others is, or where it was made plain before
    "jobs/cluster/doctor.py": 1,
    "jobs/cluster/logs.py": 2,
    "jobs/cluster/queueing.py": 9,
    "jobs/cluster/requeue.py": 2,
    "jobs/cluster/show.py": 10,
    "jobs/cluster/status.py": 1,
    "jobs/cluster/sweep.py": 3,
    "jobs/cluster/terminal.py": 8,
    "jobs/cluster/usage.py": 1,
    "jobs/cluster/wheels.py": 1,  # in the words for another Python
    "jobs/cluster/why.py": 3,
    "jobs/run/resume.py": 1,
    "jobs/training/watchdog.py": 1,
    "jobs/view/progress.py": 1,
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOM)))
def test_text_is_said_and_not_printed(path):
    """A new print() must be looked at: `say` of data/files.py makes plain what others may have written."""
    name = str(path.relative_to(ROOM))
    count = len(re.findall(r"(?<![\w.])print\(", path.read_text()))
    assert count == RAW.get(name, 0)


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.parent.name != "data"], ids=lambda path: str(path.relative_to(ROOM))
)
def test_files_are_read_by_the_one_reader(path):
    """Also a new one: json.loads, read_text and open() know no bounds."""
    allowed = {
        "jobs/config/version.py": 1,
        "jobs/cluster/preflight.py": 2,
        "jobs/cluster/status.py": 0,
        "jobs/training/devices.py": 3,  # of /proc, and of the other ranks of this run
        "jobs/training/ranks.py": 1,  # of /proc
    }
    found = re.findall(r"json\.loads?\(|\.read_text\(|(?<![\w.])open\(", path.read_text())
    assert len(found) <= allowed.get(str(path.relative_to(ROOM)), 0), found


def test_what_a_scan_tells_moves_no_cursor(tmp_path, capsys):
    """Names of folders and files are others': control characters never reach the terminal."""
    from data import scan

    root = tmp_path / "set"
    for name in ("a\x1b]0;owned\x07", "b\x1b[2J"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((32, 32), 90 + 10 * i, np.uint8)).save(root / name / f"{i}.png")
    scan.main([str(root)])
    scan.main([str(root), "--out", "x\x1b[2J.txt"])
    told = "".join(capsys.readouterr())
    assert "owned" in told and "\x1b" not in told and "\x07" not in told
