"""Damaged and hostile files, thousands of them from a seed, into every reader: tests/mutations.py in processes of their
own.

Such a process ends with an error when a reader runs a program, opens a socket, writes a file, needs more than a
gigabyte, or lets anything out but one line of its own error.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import forks
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from data.images import BadFile
from data.latents import build_latents, ensure_latents, open_latents
from data.pack import ensure_pack
from data.walk import DataError
from jobs.training.checkpoint import CheckpointError, Checkpoints, check_archive
from jobs.training.weights import WeightsError, read_weights, write_weights

TORCH_FREE = ["pack", "image", "formats", "dicom", "nifti", "sites", "run_files", "slurm"]
TORCH = ["checkpoint", "metrics", "weights", "latents"]


def feed(folder: Path, readers: list[str], seed: int, budget: int) -> str:
    command = [sys.executable, "tests/mutations.py", str(folder), str(seed), str(budget), *readers]
    env = tiny.environment(folder / "packs", MPLCONFIGDIR=str(folder))
    done = subprocess.run(
        command, cwd=tiny.ROOT, capture_output=True, text=True, errors="replace", env=env, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("readers", [TORCH_FREE, TORCH], ids=["torch-free", "torch"])
def test_mutations_never_get_past_a_reader(tmp_path, readers):
    said = feed(tmp_path, readers, seed=1, budget=150)
    assert [line.split(":")[0] for line in said.splitlines()] == readers


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("reader", TORCH_FREE + TORCH)
def test_many_mutations_never_get_past_a_reader(tmp_path, reader):
    feed(tmp_path, [reader], seed=2, budget=5000)


def test_the_guard_sees_what_it_forbids(tmp_path):
    """The test of the test: a reader that starts a program ends the process."""
    code = (
        "import os, sys; sys.path.insert(0, 'tests'); import mutations; sys.addaudithook(mutations.guard); "
        "mutations.READERS['bad'] = lambda folder: iter([(b'x' * 99, lambda data: data == b'x' * 99 or "
        "os.system('true'), ())]); "
        f"from pathlib import Path; mutations.feed('bad', Path({str(tmp_path / 'bad')!r}), 1, 5)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "os.system" in done.stderr


@pytest.mark.parametrize(
    ("command", "name", "content"),
    [
        ("-m data.pack {file}", "a.pack", b"BRAINPAK" + bytes(200)),
        ("train_gan.py --preset quickstart --data {file} --dry-run", "a.pack", b"not a pack"),
        (
            "train_gan.py --preset quickstart --resolution 32 --data {folder} --run {folder}/run",
            "scan.nii.gz",
            b"\x1f\x8b\x08" + bytes(60),
        ),
        (
            "train_gan.py --preset quickstart --resolution 32 --data {folder} --run {folder}/run",
            "a.png",
            b"\x89PNG\r\n\x1a\n" + bytes(60),
        ),
        ("predict.py generate --weights {file}", "weights.safetensors", b"\xff" * 64),
        ("predict.py generate --run {folder}", "weights.safetensors", b"\x08\0\0\0\0\0\0\0" + b"[[[[[[[["),
        ("train_gan.py --preset quickstart --data phantom:8 --run {folder}", "config.json", b"[" * 100_000),
        ("launch.py --job vae --dry-run --data phantom:8", "brain-slices/sites.toml", b"a = " + b"[" * 100_000),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "content",
)
def test_commands_answer_hostile_files_with_one_line(tmp_path, command, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    words = command.format(file=path, folder=tmp_path).split()
    env = tiny.environment(tmp_path / "packs", XDG_CONFIG_HOME=str(tmp_path))
    if words[0] in forks.SCRIPTS:
        done = forks.run(words, env)
    else:
        done = subprocess.run(
            [sys.executable, *words], cwd=tiny.ROOT, capture_output=True, text=True, env=env, timeout=500
        )
    assert done.returncode in (2, 78) and "Traceback" not in done.stderr, done.stderr
    assert sum("error: " in line for line in done.stderr.splitlines()) == 1, done.stderr


# --- what the mutations and the faults have found ---------------------------------------------------------------------
def put_checkpoint(folder: Path, content: bytes) -> Checkpoints:
    """A checkpoint with a checksum that fits, as a stranger would make it."""
    folder.mkdir(exist_ok=True)
    (folder / "000000000008.pt").write_bytes(content)
    about = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "nimg": 8, "healthy": True}
    (folder / "000000000008.json").write_text(json.dumps(about))
    return Checkpoints(folder, say=lambda text: None)


def saved(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


class Bomb:
    def __reduce__(self):
        return bytearray, (1 << 33,)


def test_an_allocation_in_a_checkpoint_is_not_made(tmp_path):
    """torch.load(weights_only=True) would call bytearray(2**33)."""
    with pytest.raises(ValueError, match="bytearray"):
        check_archive(io.BytesIO(saved({"a": Bomb()})))
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        put_checkpoint(tmp_path / "c", saved({"a": Bomb()})).load_latest()


@pytest.mark.parametrize("new_format", [True, False])
def test_feature_weights_are_tensors_by_name_or_refused(tmp_path, new_format):
    from models.encoder import read_state

    path = tmp_path / "weights.pth"
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=new_format)
    assert torch.equal(read_state(path)["0.weight"], net[0].weight)
    torch.save({"a": Bomb()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match="bytearray"):
        read_state(path)


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    """A hundred megabytes of zeros in a file of a hundred kilobytes."""
    plain, packed = io.BytesIO(saved({"a": torch.zeros(25_000_000)})), io.BytesIO()
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    assert len(packed.getvalue()) < 1_000_000
    with pytest.raises(CheckpointError):
        put_checkpoint(tmp_path / "c", packed.getvalue()).load_latest()
    assert put_checkpoint(tmp_path / "d", plain.getvalue()).load_latest()[1]["a"].numel() == 25_000_000


def test_all_that_training_saves_passes_the_check():
    net = torch.nn.Linear(3, 2).to(torch.bfloat16)
    state = {
        "net": net.state_dict(),
        "int": torch.arange(3),
        "bool": torch.ones(2, dtype=torch.bool),
        "half": torch.zeros(2).half(),
        "double": torch.zeros(2).double(),
        "byte": torch.zeros(2, dtype=torch.uint8),
        "plain": {"a": [1, (2.5, None)], 3: "x"},
    }
    check_archive(io.BytesIO(saved(state)))


def test_a_flipped_bit_in_weights_is_found(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_weights(path, {"G": {"w": torch.randn(1000)}}, {"config": {}})
    assert set(read_weights(path)[0]) == {"G.w"}
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="checksum"):
        read_weights(path)


def encoded(folder: Path):
    pack = ensure_pack("phantom:6", resolution=16, split="all", cache_dir=folder, log=lambda *_: None, progress=False)

    def encode(images):
        return torch.full((len(images), 2, 4, 4), 0.5), torch.zeros(len(images), 2, 4, 4)

    return pack, encode


def test_damaged_latents_are_encoded_again(tmp_path):
    """Nothing else would notice: the run would train on other numbers."""
    pack, encode = encoded(tmp_path)
    path = Path(ensure_latents(pack, encode, "sha", device="cpu", cache_dir=tmp_path, log=lambda *_: None).path)
    good = path.read_bytes()
    for content in (good[:-1] + bytes([good[-1] ^ 1]), good.replace(b"'descr'", b"'descr"), good[:60]):
        path.write_bytes(content)
        assert open_latents(path, pack, "sha") is None
        again = ensure_latents(pack, encode, "sha", device="cpu", cache_dir=tmp_path, log=lambda *_: None)
        assert (again.values[:, 0] == 0.5).all() and path.read_bytes() == good
    for mean in ("x", [None, None], [float("nan")] * 2, {"a": 1}):
        about = json.loads(path.with_suffix(".json").read_text()) | {"mean": mean}
        path.with_suffix(".json").write_text(json.dumps(about))
        assert open_latents(path, pack, "sha") is None


def test_no_room_for_latents_is_an_error_and_no_bus_error(tmp_path, monkeypatch):
    """They are written through a memory map, where a full disk would kill the process."""
    pack, encode = encoded(tmp_path)

    def full(handle, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match="No space left on device"):
        build_latents(pack, encode, "sha", tmp_path / "latents.npy", device="cpu", log=lambda *_: None)
    assert not (tmp_path / "latents.npy").exists() and not list(tmp_path.glob("*.tmp"))


def test_thin_voxels_do_not_become_pictures_of_terabytes(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    from data.volumes import read_volume, volume_frame

    path = tmp_path / "thin.nii.gz"
    volume = nibabel.Nifti1Image(np.zeros((30000, 300, 1), np.uint8), np.diag([1.0, 0.06, 1.0, 1.0]))
    nibabel.save(volume, path)
    for read in (volume_frame, read_volume):
        with pytest.raises(BadFile, match="implausible"):
            read(path)


def test_deeply_nested_sites_are_one_line(tmp_path, monkeypatch):
    from jobs.cluster.sites import load_sites
    from jobs.config.specs import ConfigError

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "brain-slices").mkdir()
    (tmp_path / "brain-slices" / "sites.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"sites\.toml: cannot be read as TOML"):
        load_sites()


def test_pictures_are_plain_files(tmp_path):
    """A picture that is a pipe, a folder or a link to nowhere is a bad file, at once."""
    from data.images import image_size, read_bytes

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone")
    Image.new("L", (4, 4)).save(tmp_path / "good.png")
    for name in ("pipe", "folder", "nowhere"):
        for read in (image_size, read_bytes):
            with pytest.raises(BadFile):
                read(tmp_path / f"{name}.png")
    assert image_size(tmp_path / "good.png") == (4, 4)
