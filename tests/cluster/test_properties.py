"""Properties that hold for whatever comes in: the data room, the configs, what Slurm prints."""

from __future__ import annotations

import json
import string
from dataclasses import asdict, fields

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from data import images
from data.batches import flip_coins, sample_order
from data.files import is_number
from data.packfile import check_geometry, restore
from data.sources import find_source
from data.walk import DataError, class_name
from jobs.cluster import decide, slurm
from jobs.cluster.slurm import Job, SlurmError
from jobs.config import parsing
from jobs.config.specs import ConfigError, DiffusionConfig, GanConfig, VaeConfig
from jobs.run.resume import compare_with_run
from jobs.run.rundir import RunDir
from jobs.run.states import RunDirError
from jobs.run.stopping import CONTINUE, TRANSIENT

CONFIGS = (GanConfig, VaeConfig, DiffusionConfig)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


# --- the data room ----------------------------------------------------------------------------------------------------
@few
@given(
    n=st.integers(1, 50),
    seed=st.integers(0, 1 << 40),
    start=st.integers(0, 1 << 30),
    count=st.integers(0, 200),
    cut=st.integers(0, 200),
)
def test_the_order_of_the_data_may_be_cut_anywhere_and_each_epoch_is_a_permutation(n, seed, start, count, cut):
    whole, cut = sample_order(n, seed, start, count), min(cut, count)
    assert np.array_equal(
        whole, np.concatenate([sample_order(n, seed, start, cut), sample_order(n, seed, start + cut, count - cut)])
    )
    epoch = sample_order(n, seed, start - start % n, n)
    assert sorted(epoch) == list(range(n))
    coins = flip_coins(seed, start, count)
    assert np.array_equal(
        coins, np.concatenate([flip_coins(seed, start, cut), flip_coins(seed, start + cut, count - cut)])
    )


@few
@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3]), extra=st.integers(0, 20))
def test_padding_to_a_square_is_undone_exactly(height, width, channels, extra):
    pixels = np.random.default_rng([height, width]).integers(0, 256, (height, width, channels), np.uint8)
    square = max(height, width, 8) + extra
    padded = images.fit_square(pixels, square, 0, square)
    assert padded.shape == (square, square, channels) and padded.sum() == pixels.sum()
    geometry = dict(source_height=height, source_width=width, square=square, crop=0, resolution=square)
    back = restore(padded.transpose(2, 0, 1)[None], geometry)[0].transpose(1, 2, 0)
    assert np.array_equal(back, pixels)


@few
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    square=st.integers(1, 60),
    crop=st.integers(0, 60),
    side=st.sampled_from([8, 16, 64]),
)
def test_any_slice_fits_any_square_and_stays_in_range(height, width, square, crop, side):
    assume(crop <= square)
    pixels = np.full((height, width, 1), 255, np.uint8)
    fitted = images.fit_square(pixels, square, crop, side)
    assert fitted.shape == (side, side, 1) and fitted.dtype == np.uint8


@few
@given(geometry=st.fixed_dictionaries({k: st.integers(-5, 1 << 20) | json_values for k in
                                       ("source_height", "source_width", "square", "crop",
                                       "resolution")}) | json_values)  # fmt: skip
def test_a_geometry_is_refused_or_small(geometry):
    try:
        check_geometry(geometry)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert geometry["source_height"] * geometry["source_width"] <= 1 << 28


@few
@given(data=st.binary(max_size=300))
def test_bytes_are_a_picture_or_a_bad_file(data):
    try:
        pixels = images.decode(data)
    except images.BadFile as error:
        assert str(error)
    else:
        assert pixels.dtype == np.uint8


@few
@given(
    name=st.text(min_size=1, max_size=30)
    | st.binary(min_size=1, max_size=20).map(lambda b: b.decode("utf-8", "surrogateescape"))
)
def test_names_of_classes_can_be_printed_and_are_no_paths(name):
    shown = class_name(name)
    assert shown.isprintable() and shown.encode() and "\n" not in shown


@few
@given(
    names=st.lists(
        st.text(string.ascii_letters + " $`'\"<>;&|*?%-", min_size=1, max_size=12),
        min_size=1,
        max_size=4,
        unique_by=str.lower,
    )
)
def test_class_folders_of_any_name_are_found_whole(names, tmp_path_factory):
    """Every slice is found once, whatever its folder is called, and labels are those of the folders."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("data")
    for i, name in enumerate(names):
        (folder / f"c{name}").mkdir()
        for k in range(2):
            Image.fromarray(np.full((8, 8), 50 * k + i, np.uint8)).save(folder / f"c{name}" / f"s{i}_{k}.png")
    source = find_source(str(folder), "all")
    assert len(source.records) == 2 * len(names) and len({r.name for r in source.records}) == len(source.records)
    assert all(-1 <= r.label < max(len(source.classes), 1) for r in source.records)
    assert source.digest() == find_source(str(folder), "all").digest()


# --- configs ----------------------------------------------------------------------------------------------------------
@few
@given(
    cls=st.sampled_from(CONFIGS),
    changes=st.dictionaries(st.integers(0, 60), json_values, max_size=4),
    extra=st.dictionaries(st.text(max_size=5), json_values, max_size=1),
)
def test_a_stored_config_is_read_or_refused_in_one_line(cls, changes, extra, tmp_path):
    config = parsing.parse_config(cls, ["--preset", "quickstart", "--run", str(tmp_path / "run")])
    names = [f.name for f in fields(cls)]
    stored = asdict(config) | {names[i % len(names)]: value for i, value in changes.items()} | extra
    run = RunDir(tmp_path / "run")
    run.create()
    run.config.write_text(json.dumps(stored))
    try:
        compare_with_run(run, config)
    except (ConfigError, RunDirError) as error:
        assert len(str(error).splitlines()) == 1


@few
@given(
    cls=st.sampled_from(CONFIGS),
    seed=st.integers(0, 1 << 31),
    lr=st.floats(1e-6, 0.1),
    batch=st.sampled_from([8, 16, 32]),
    kimg=st.floats(0.01, 1e4),
)
def test_the_name_of_a_run_depends_on_what_changes_the_result_alone(cls, seed, lr, batch, kimg):
    def parsed(*flags):
        return parsing.parse_config(
            cls, ["--preset", "quickstart", "--seed", str(seed), "--lr", repr(lr), "--batch", str(batch), *flags]
        )

    a, b = parsed(), parsed("--total-kimg", repr(kimg), "--log-kimg", "0.5", "--run", "elsewhere")
    assert parsing.default_name(a) == parsing.default_name(b)
    assert parsing.default_name(a) != parsing.default_name(parsed("--seed", str(seed + 1)))
    assert parsing.from_dict(cls, json.loads(parsing.to_json(a))) == a


# --- Slurm's words ----------------------------------------------------------------------------------------------------
slurm_text = st.text(string.printable + slurm.FIELD + slurm.RECORD + "é\u0663", max_size=200)


@pytest.mark.parametrize("parse", [slurm.parse_squeue, slurm.parse_show_job, slurm.parse_sacct, slurm.parse_time,
        slurm.parse_gres,
                                   lambda t: slurm.parse_partitions(t, ""),
                                   lambda t: slurm.parse_partitions("", t)])  # fmt: skip
@few
@given(text=slurm_text)
def test_any_text_of_slurm_is_understood_or_one_line(parse, text):
    try:
        parse(text)
    except SlurmError as error:
        assert len(str(error).splitlines()) == 1


@few
@given(seconds=st.integers(0, 365 * 86400))
def test_durations_come_back(seconds):
    assert slurm.parse_time(slurm.format_time(seconds)) == seconds


word = st.text(string.ascii_letters + string.digits + " /.-_=:éß", max_size=20)


@few
@given(name=word, workdir=word, command=word, reason=word, number=st.integers(1, 1 << 31))
def test_names_and_paths_come_through_squeue(name, workdir, command, reason, number):
    row = [str(number), "RUNNING", reason, "u", "gpu", "n1", "1:00", "2:00", "N/A", "N/A", "", name, command, workdir]
    (job,) = slurm.parse_squeue(slurm.FIELD.join(row) + slurm.RECORD + "\n").values()
    assert (job.id, job.name, job.workdir, job.active) == (str(number), name, workdir, True)


# --- whether a run goes on --------------------------------------------------------------------------------------------
jobs = st.none() | st.builds(
    Job, id=st.just("7"), state=st.sampled_from([*sorted(slurm.ACTIVE), "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"]),
    reason=word, restarts=st.integers(0, 5), start=st.none() | st.floats(0, 100), end=st.none() | st.floats(0, 1e4),
    preempt_time=st.none() | st.floats(0, 200),
)  # fmt: skip


codes = st.sampled_from([0, 1, 2, TRANSIENT, 77, 78, CONTINUE, 126, 130, 137, 143]) | st.integers(0, 255)


@settings(max_examples=300, deadline=None)
@given(
    code=codes,
    done=st.booleans(),
    stopped=st.booleans(),
    job=jobs,
    restarts=st.integers(0, 5),
    reason=word,
    now=st.floats(0, 1e4),
)
def test_a_run_never_goes_on_against_a_person_or_after_a_refusal(code, done, stopped, job, restarts, reason, now):
    decision = decide.decide(code, done, stopped, job, restarts, reason, now)
    assert decision.verdict in ("requeue", "done", "stopped", "failed")
    put_back = job is not None and job.restarts > restarts
    node_failed = job is not None and job.state == "NODE_FAIL"
    assert decision.by_slurm == (put_back and not done and not stopped)
    if done or stopped:
        assert decision.verdict != "requeue"
    elif put_back:  # by Slurm already; its next start looks for STOP and DONE
        assert decision.verdict == "requeue" and not decision.counted
    elif code in (2, 77, 78, 130):
        assert decision.verdict == ("stopped" if code == 130 else "failed")
    elif node_failed:  # srun gives up with 0 or 1, and neither is the training's own word
        assert decision.verdict == "requeue" and not decision.counted
    elif decision.verdict == "requeue":
        assert code in (CONTINUE, TRANSIENT) or code > 128
    if decision.verdict != "requeue":
        assert not decision.counted


@few
@given(lines=st.lists(st.dictionaries(st.sampled_from(["event", "time", "nimg", "seconds", "decision", "counted",
    "attempt"]), json_values, max_size=6), max_size=5),
       status=json_values, about=json_values)  # fmt: skip
def test_the_record_of_a_run_may_hold_anything(lines, status, about, tmp_path):
    """What other hands wrote into attempts.jsonl, status.json and jobs.json keeps no job from its decision and no
    attempt from its start."""
    from jobs.run.find import read_jobs

    run = RunDir(tmp_path / "run")
    run.create()
    run.attempts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.path / "status.json").write_text(json.dumps(status))
    (run.path / "jobs.json").write_text(json.dumps(about))
    read = run.read_attempts()
    assert all(is_number(line["time"]) for line in read if line.get("time") is not None)
    known = read_jobs(run.path)
    decision = decide.Decision("requeue", "", counted=True)
    assert decide.within_budget(decision, 8, read, decide.started_by_person(known), 3).verdict in (
        "requeue",
        "stuck",
        "budget",
    )
    run.attempt_start(nimg=0)
    run.attempt_end(nimg=0, reason="", seconds=1.0, code=0)
    assert RunDir(run.path).read_attempts()[-1]["event"] == "end"
