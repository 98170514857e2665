"""README and docs say what is true: their commands parse, their names are those of the code, their form is plain."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
import tiny

import launch
from data.sources import LAYOUTS
from jobs.config import kinds, parsing, presets
from jobs.predict import flags
from jobs.run.states import RunState
from models.names import SAMPLERS, SCHEDULES, TARGETS

PAGES = sorted([tiny.ROOT / "README.md", tiny.ROOT / "CONTRIBUTING.md", *(tiny.ROOT / "docs").glob("*.md")])
SCRIPTS = {job.script: job.config for job in kinds.JOBS.values()}


def blocks(page: Path) -> list[tuple[str, list[str]]]:
    """(language, lines) of every fenced block."""
    found: list[tuple[str, list[str]]] = []
    inside = False
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
            if inside:
                found.append((line.strip().removeprefix("```"), []))
        elif inside:
            found[-1][1].append(line)
    return found


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of a shell block or in backticks that calls one of the five scripts, without its comment."""
    found = []
    for page in PAGES:
        lines = [line for language, text in blocks(page) if language in ("bash", "sh") for line in text]
        lines += re.findall(r"`((?:python|torchrun|launch\.py|predict\.py)[^`]*)`", page.read_text())
        for line in lines:
            words = shlex.split(line.partition(" #")[0].rstrip("\\"))
            at = next(
                (i for i, word in enumerate(words) if word == "launch.py" or word in ("predict.py", *SCRIPTS)), None
            )
            if at is not None:
                found.append((f"{page.name}: {' '.join(words)}", [word for word in words[at:] if word != "..."]))
    return found


COMMANDS = commands()


@pytest.mark.parametrize("words", [words for _, words in COMMANDS], ids=[name for name, _ in COMMANDS])
def test_every_command_in_the_docs_is_one_that_the_scripts_take(words, tmp_path, monkeypatch):
    """Its flags and values; what it does is other tests' matter."""
    script, rest = words[0], words[1:]
    if not rest or rest == ["--data"]:
        return
    rest = rest[: rest.index("\\")] if "\\" in rest else rest
    if script == "predict.py":
        named = {"--run", "--verify"} & set(rest) or rest[0] in ("report", "plot", "card", "explore")
        flags.parse_args("", [*rest, *([] if named else ["--run", "x"])])
    elif script in SCRIPTS:
        monkeypatch.chdir(tmp_path)
        rest += [str(tmp_path)] if rest[-1] == "--data" else []
        parsing.parse_config(SCRIPTS[script], rest)
    elif rest[0] in launch.VERBS:
        verb_takes(rest)
    else:
        given, training = launch.split_flags(launch.queue_parser(), rest)
        for job in {"pipeline": ("vae", "diffusion")}.get(given.job, (given.job,) if given.job else ()):
            if "--help" not in training:
                parsing.parse_config(
                    kinds.JOBS[job].config,
                    ["--preset", given.preset or kinds.JOBS[job].default_preset, "--data", str(tmp_path), *training],
                )


def verb_takes(rest: list[str]) -> None:
    """Its --help names every flag that the docs give it."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        launch.VERBS[rest[0]](["--help"])
    for word in rest[1:]:
        if word.startswith("-"):
            assert re.search(rf"(^|[\s,]){re.escape(word)}\b", text.getvalue()), f"{rest[0]} has no {word}"


def test_the_docs_name_all_that_one_can_choose():
    def text(name: str) -> str:
        return (tiny.ROOT / name).read_text()

    predict = [
        line for language, lines in blocks(tiny.ROOT / "docs" / "predict.md") if language == "bash" for line in lines
    ]
    shown = {line.split()[2] for line in predict if line.startswith("python predict.py")}
    assert shown >= {command for job in kinds.JOBS.values() for command in job.predicts} | {"plot", "report"}
    for job in kinds.JOBS.values():
        for preset in job.presets:
            assert f"`{preset}`" in text("README.md"), preset
    for name in (*SAMPLERS, *SCHEDULES, *TARGETS):
        assert re.search(rf"\b{re.escape(name)}\b", text("docs/training.md")), name
    for layout in LAYOUTS:
        assert f"`{layout.name}`" in text("docs/data.md"), layout.name
    assert set(presets.GAN_PRESETS) == {"adni256", "adni128", "oasis128", "oasis64", "quickstart"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_form_of_a_page(page):
    """Fenced blocks say their language, no line of code is wider than 100, every heading stands once."""
    for language, lines in blocks(page):
        assert language, f"a block of {page.name} without a language: {lines[:1]}"
        assert not [line for line in lines if len(line) > 100]
    code = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", code, re.M)
    assert len(headings) == len(set(headings))
    for link in re.findall(r"\]\(([^)#:]+)\)", code):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_is_read_in_minutes():
    text = (tiny.ROOT / "README.md").read_text()
    assert len(text.split()) <= 1000
    order = ["Try it", "On your cluster", "Train", "Use a model", "When it stops", "How the code is laid out"]
    places = [re.search(rf"^## {name}", text, re.M) for name in order]
    assert all(places) and [p.start() for p in places] == sorted(p.start() for p in places)


def test_every_state_that_a_run_can_be_in_is_explained():
    """In docs/slurm.md: once each, with what it means and what to type."""
    text = (tiny.ROOT / "docs" / "slurm.md").read_text().split("## What a run can be")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    assert sorted(row[0].strip("`") for row in rows) == sorted(RunState)
    assert all(len(row) == 3 and row[1] and row[2] for row in rows)
    verbs = {verb for row in rows for verb in re.findall(r"launch\.py ([a-z]+)", row[2])}
    assert verbs <= set(launch.VERBS)
