"""predict.py and training on what others made: weights and checkpoints within their bounds, and no way out of a run."""

from __future__ import annotations

import json
import os
import zipfile

import numpy as np
import pytest
import torch
from odd_files import ODD, bounded, make_run, put
from PIL import Image
from safetensors.torch import save_file

from data.files import (
    SMALL,
)
from jobs.config.specs import ConfigError
from jobs.predict import pages
from jobs.predict.named import weights_of
from jobs.predict.output import Output, output_of
from jobs.predict.trained import read_snapshot
from jobs.training.checkpoint import CheckpointError, Checkpoints
from jobs.training.weights import WeightsError, check_header, read_weights
from jobs.view.pictures import is_complete
from jobs.view.report import write_page


# --- checkpoints and weights ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder", "socket", "device", "deep"])
@pytest.mark.parametrize("suffix", [".pt", ".json"])
@bounded
def test_an_odd_checkpoint_is_passed_over(tmp_path, kind, suffix):
    """As --init-from and a resume read it: the one before is taken."""
    said: list[str] = []
    store = Checkpoints(tmp_path / "checkpoints", say=said.append)
    store.folder.mkdir()
    for nimg in (8, 16):
        store.save(nimg, {"n": nimg})
        store.wait(raise_errors=True)
    newest = store.folder / f"000000000016{suffix}"
    newest.unlink()
    ODD[kind](newest)
    assert store.load_latest() == (8, {"n": 8})
    assert len(said) == 1 and "000000000016" in said[0] and len(said[0].splitlines()) == 1
    older = store.folder / f"000000000008{suffix}"
    older.unlink()
    ODD[kind](older)
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        store.load_latest()


def header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        header(b"{}", 1 << 40),
        header(b"{}", 100 << 20),
        header(b"{}", 0),
        header(b"[" * 100_000),
        header(b"[]"),
        header(b"{}") + b"x",
        header(b'{"a": 1}'),
        header(b'{"a": {"data_offsets": [0]}}'),
        header(b'{"a": {"data_offsets": [0, NaN]}}'),
        header(b'{"a": {"data_offsets": "xx"}}'),
        header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 99]}}'),
        header(b'{"__metadata__": {"config": "[["}}'),
        header(b'{"__metadata__": 7}'),
    ],
    ids=range(15),
)
@bounded
def test_a_header_of_weights_is_checked_before_a_tensor_is_read(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="weights") as error:
        read_weights(path)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ConfigError):
        read_snapshot(path)


@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder", "socket", "device"])
@bounded
def test_odd_weights_are_one_line(tmp_path, kind):
    path = tmp_path / "weights.safetensors"
    ODD[kind](path)
    for read, error in ((read_weights, WeightsError), (check_header, WeightsError), (read_snapshot, ConfigError)):
        with pytest.raises(error, match="not a readable weights file"):
            read(path)
    with pytest.raises(WeightsError, match="no such weights file"):
        read_weights(tmp_path / "none.safetensors")


def test_a_config_of_weights_must_be_finite_and_shallow(tmp_path):
    path = tmp_path / "weights.safetensors"
    for config in ('{"config": {"resolution": NaN}}', "[" * 50_000, '{"config": {"data": "\\ud800"}}'):
        save_file({"a": torch.zeros(3)}, path, metadata={"config": config})
        with pytest.raises(WeightsError):
            read_weights(path)


# --- predict.py stays inside a run ------------------------------------------------------------------------------------
def test_weights_that_lead_out_of_a_run_are_not_followed(tmp_path):
    run = make_run(tmp_path)
    save_file({"a": torch.zeros(3)}, tmp_path / "private.safetensors")
    run.weights.symlink_to(tmp_path / "private.safetensors")
    with pytest.raises(ConfigError, match="a link that leads out of the run; name the file itself with --weights"):
        weights_of(run.path)
    run.weights.unlink()
    save_file({"a": torch.zeros(3)}, run.path / "weights-best.safetensors")
    run.weights.symlink_to("weights-best.safetensors")
    assert weights_of(run.path) == run.weights


def test_predictions_that_lead_out_of_a_run_are_not_written(tmp_path):
    import argparse

    run = make_run(tmp_path)
    (tmp_path / "private").mkdir()
    args = argparse.Namespace(command="generate", run=str(run.path), out="", scale=1, overwrite=False)
    assert output_of(args, 2000).folder == run.path / "predictions/generate/2kimg"
    (run.path / "predictions").symlink_to(tmp_path / "private")
    with pytest.raises(ConfigError, match="a link that leads out of the run; name the folder itself with --out"):
        output_of(args, 2000).claim(2000, {"seed": 0})
    args.out = str(tmp_path / "private")
    assert output_of(args, 2000).claim(2000, {"seed": 0}).folder == tmp_path / "private"  # a person's own word


def test_plots_that_lead_out_of_a_run_are_not_written(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / "private").mkdir()
    run.plots.rmdir()
    run.plots.symlink_to(tmp_path / "private")
    with pytest.raises(ConfigError, match="a link that leads out of the run; name the file itself with --out"):
        pages.plot([str(run.path)])
    assert not list((tmp_path / "private").iterdir())
    pages.plot([str(run.path)], str(tmp_path / "private" / "x.png"))


def test_a_report_shows_nothing_from_outside_of_its_run(tmp_path):
    run, private = make_run(tmp_path), tmp_path / "private"
    private.mkdir()
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(private / "grid.png")
    (private / "metrics.json").write_text('{"distances": {"generated": {"fid": 1}}, "notes": ["a private thing"]}')
    (private / "config.json").write_text('{"data": "a private thing"}')
    for name in ("samples/00001.png", "samples/reals.png", "predictions/mix/mix.png"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).symlink_to(private / "grid.png")
    (run.path / "predictions" / "generate").symlink_to(private)
    (run.path / "predictions" / "evaluate").symlink_to(private)
    (run.path / "provenance.json").symlink_to(private / "config.json")
    page = write_page([run])
    assert page.count("<img") == 1 and "a private thing" not in page  # its own losses
    inside = run.path / "elsewhere.png"
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(inside)
    (run.samples / "00002.png").symlink_to(inside)
    assert write_page([run]).count("<img") == 1 + 2  # as the newest too


def test_pictures_that_are_links_or_of_another_kind_are_made_again(tmp_path):
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "rgb.png")
    Image.fromarray(np.zeros((5, 7, 4), np.uint8)).save(tmp_path / "rgba.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert is_complete(tmp_path / "a.png", (5, 7), 1) and is_complete(tmp_path / "rgb.png", (5, 7), 3)
    for name, channels in (("link", 1), ("pipe", 1), ("rgb", 1), ("a", 3), ("rgba", 1), ("rgba", 3), ("none", 1)):
        assert not is_complete(tmp_path / f"{name}.png", (5, 7), channels), name
    with open(tmp_path / "a.png", "ab") as file:
        file.truncate(6 << 30)
    assert not is_complete(tmp_path / "a.png", (5, 7), 1)


@pytest.mark.parametrize("kind", ODD)
@bounded
def test_an_odd_generate_json_is_one_line(tmp_path, kind):
    folder = tmp_path / "out"
    folder.mkdir()
    ODD[kind](folder / "generate.json")
    with pytest.raises(ConfigError, match=r"its generate\.json cannot be read; use another --out"):
        Output("generate", folder).claim(0, {"seed": 0})


def test_small_is_larger_than_what_runs_write():
    """A sweep of two thousand points, a chain of ten thousand jobs."""
    assert len(json.dumps([{"values": {"lr": "0.001"}, "run": "/" + "x" * 200}] * 2000, indent=1)) < SMALL
    assert len(json.dumps([{"id": "1234567", "kind": "chain", "time": 1234567890.1}] * 10_000, indent=1)) < SMALL


@pytest.mark.parametrize("kind", ["sparse", "pipe", "link out"])
@bounded
def test_curves_of_an_odd_log_are_one_line(tmp_path, kind):
    run = make_run(tmp_path)
    put(run, "metrics.jsonl", kind)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is damaged"):
        pages.plot([str(run.path)])


def test_a_list_of_tensors_that_fills_the_memory_is_refused(tmp_path):
    """As a file of feature weights, and as a checkpoint: an archive whose data.pkl has gigabytes."""
    from jobs.training.checkpoint import check_archive
    from models.encoder import check_names

    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, archive.open("x/data.pkl", "w") as part:
        for _ in range(20):
            part.write(bytes(1 << 20))
    for check in (check_archive, check_names):
        with open(path, "rb") as file, pytest.raises(ValueError, match="its list of tensors is too large"):
            check(file)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device"])
@bounded
def test_an_odd_pack_is_one_line_and_odd_latents_are_made_again(tmp_path, kind):
    from data.latents import open_latents
    from data.packfile import open_pack
    from data.walk import DataError

    ODD[kind](tmp_path / "a.pack")
    with pytest.raises(DataError, match="not a regular file"):
        open_pack(tmp_path / "a.pack")
    ODD[kind](tmp_path / "l.npy")
    (tmp_path / "l.json").write_text("{}")
    assert open_latents(tmp_path / "l.npy", None, "sha") is None
    (tmp_path / "l.npy").rmdir() if kind == "folder" else (tmp_path / "l.npy").unlink()
    (tmp_path / "l.json").unlink()
    ODD[kind](tmp_path / "l.json")
    assert open_latents(tmp_path / "l.npy", None, "sha") is None


@pytest.mark.parametrize("value", [10**400, -1, True, 1.5, None, "8", [8], {}], ids=range(8))
def test_any_count_of_images_in_weights_can_be_shown(tmp_path, value):
    from jobs.predict.trained import checked_about

    nimg = checked_about(tmp_path, {"classes": [], "nimg": value})[2]
    assert f"{nimg / 1000:g}" == ("-0.001" if value == -1 else "0")


@pytest.mark.parametrize("field", ["data", "crop"])
@pytest.mark.parametrize("value", ["a\0b", "", None, [1], "x", 10**400], ids=range(6))
def test_any_origin_that_weights_name_is_one_line(tmp_path, field, value):
    from types import SimpleNamespace

    from data.walk import DataError
    from jobs.predict.features import open_data
    from jobs.predict.named import UsageError
    from jobs.predict.reconstruct import slices_of

    config = {"data": str(tmp_path / "none"), "crop": 0, "resolution": 32, "channels": 1} | {field: value}
    model = SimpleNamespace(config=config, path="weights", resolution=32, channels=1, classes=[])
    for read in (slices_of, open_data):
        with pytest.raises((UsageError, ConfigError, DataError)) as error:
            read(model)
        assert len(str(error.value).splitlines()) == 1


def test_names_in_a_table_are_plain(tmp_path):
    Output("tsne", tmp_path).csv("t.csv", ["name", "x"], [["a\x1b[2J\u202e", 0.5], ["é, b", None]])
    assert (tmp_path / "t.csv").read_text() == 'name,x\na\\x1b[2J\\u202e,0.5\n"é, b",\n'


@bounded
def test_weights_of_gigabytes_of_nothing_are_not_hashed(tmp_path):
    """A header that is right in itself, and holes behind it."""
    path, numbers = tmp_path / "weights.safetensors", 3 << 29
    about = {"a": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}
    with open(path, "wb") as file:
        file.write(header(json.dumps(about).encode()))
        file.truncate(file.tell() + 4 * numbers)
    for read, error in ((read_weights, WeightsError), (read_snapshot, ConfigError)):
        with pytest.raises(error, match="too large: more than 4096 MB"):
            read(path)
