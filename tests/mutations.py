"""Feed damaged and hostile files to every reader, with a seed and a fixed budget:

    python tests/mutations.py FOLDER SEED BUDGET READER [READER ...]

Prints one line per reader. Exits with 1 and the input's path when a reader lets anything but its own error out, with 2
when it starts a program, opens a socket or writes a file. Memory is limited to ROOM bytes above what the imports took.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import resource
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ROOM = 1 << 30
FORBIDDEN = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "pty.spawn",
    "socket.connect",
    "socket.bind",
    "ctypes.dlopen",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.chmod",
    "shutil.rmtree",
    "os.symlink",
    "os.link",
    "os.mkdir",
}
WORDS = [
    b"null",
    b"true",
    b"-1",
    b"0",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"9" * 400,
    b"[" * 3000,
    b"{}",
    b"[]",
    b'""',
    b'"../../../etc/passwd"',
    b'"<script>alert(1)</script>"',
    b'"\\u0000\\n\\ud800"',
    b"1e308",
    b"18446744073709551616",
    b"\"__import__('os')\"",
]
NUMBERS = [
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
]

armed = False


def guard(event: str, arguments: tuple) -> None:
    """An audit hook: what no reader may do ends the process."""
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+")
    if armed and (event in FORBIDDEN or writes) and ".tmp." not in str(arguments[:1]):  # a reader's own atomic write
        sys.stderr.write(f"a reader did {event} {arguments!r}\n")
        sys.stderr.flush()
        os._exit(2)


# --- mutations --------------------------------------------------------------------------------------------------------
def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to four random changes: bits, bytes, numbers, cuts, doubled and inserted pieces, JSON values."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not data:
            return bytes(data)
        # Headers are at the front: half of the changes fall into the first 512 bytes.
        at = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 512))
        kind = rng.randrange(8)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            form = rng.choice(("<H", "<I", "<Q", ">H", ">I", ">Q"))
            number = struct.pack(form, rng.choice(NUMBERS) & ((1 << 8 * struct.calcsize(form)) - 1))
            data[at : at + len(number)] = number
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            data[at:at] = data[at : at + rng.randrange(1, 256)]
        elif kind == 6:
            data[at:at] = rng.randbytes(rng.randrange(1, 32))
        else:
            end = next(
                (i for i in range(at, min(at + 64, len(data))) if data[i : i + 1] in (b",", b"}", b"]", b"\n")), at + 1
            )
            begin = next(
                (i for i in range(at, max(at - 64, -1), -1) if data[i : i + 1] in (b":", b"[", b",", b"=")), at
            )
            data[begin + 1 : end] = rng.choice(WORDS)
    return bytes(data)


# --- readers: each yields (seed file's content, read(content), expected errors) ---------------------------------------
def pack(folder: Path) -> Iterator[tuple[bytes, Callable, tuple]]:
    from data.pack import ensure_pack
    from data.packfile import open_pack
    from data.walk import DataError

    made = ensure_pack("phantom:6", resolution=16, split="all", cache_dir=folder, log=lambda *_: None, progress=False)
    content, path = Path(made.path).read_bytes(), folder / "hostile.pack"

    def read(data: bytes) -> None:
        found = open_pack(_put(path, data), verify=True)
        assert found.images.shape[0] == len(found.labels) and found.images[-1].sum() >= 0

    magic, version, zero, length, offset, _ = struct.unpack_from("<8sIIQQ32s", content)

    def read_resealed(head: bytes) -> None:
        """With the header's hash made right again, as a stranger would."""
        preamble = struct.pack("<8sIIQQ32s", magic, version, zero, len(head), offset, hashlib.sha256(head).digest())
        read((preamble + head).ljust(offset, b" ") + content[offset:])

    yield content, read, (DataError,)
    yield content[64 : 64 + length].strip(), read_resealed, (DataError,)


def image(folder: Path) -> Iterator:
    from PIL import Image

    from data.images import BadFile, decode, image_size

    path = folder / "hostile.png"

    def read(data: bytes) -> None:
        with contextlib.suppress(BadFile):
            image_size(_put(path, data))
        for channels in (1, 3):
            pixels = decode(data, channels)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8))
    for form, mode in [
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("PNG", "I;16"),
        ("JPEG", "RGB"),
        ("TIFF", "L"),
        ("GIF", "P"),
        ("BMP", "L"),
        ("WEBP", "RGB"),
        ("PPM", "L"),
    ]:
        file = io.BytesIO()
        ready = Image.fromarray(np.zeros((24, 20), np.uint16)) if mode == "I;16" else picture.convert(mode)
        ready.save(file, form)
        yield file.getvalue(), read, (BadFile,)


def formats(folder: Path) -> Iterator:
    """Stacks of pages, arrays, and archives of them."""
    import zipfile

    from PIL import Image

    from data import reading
    from data.images import BadFile, look_picture, read_pages, render

    def read_pictures(path: Path | str) -> None:
        for raw in read_pages(path, list(range(min(look_picture(path)[0], 3)))):
            if not isinstance(raw, BadFile):
                assert render(raw).dtype == np.uint8

    def reader(suffix: str) -> Callable[[bytes], None]:
        return lambda data: read_pictures(_put(folder / f"hostile{suffix}", data))

    def read_archive(data: bytes) -> None:
        path = _put(folder / "hostile.zip", data)
        for member in reading.members(path)[:3]:
            read_pictures(f"{path}/{member.name}")

    values = np.random.default_rng(0).integers(0, 255, (3, 20, 24), np.uint8)
    first, *rest = [Image.fromarray(page) for page in values]
    for suffix in (".tif", ".gif"):
        file = io.BytesIO()
        first.save(file, {".tif": "TIFF", ".gif": "GIF"}[suffix], save_all=True, append_images=rest)
        yield file.getvalue(), reader(suffix), (BadFile,)
    file, archive = io.BytesIO(), io.BytesIO()
    np.save(file, values.astype(np.float32))
    yield file.getvalue(), reader(".npy"), (BadFile,)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("a.npy", file.getvalue())
    yield archive.getvalue(), reader(".npz"), (BadFile,)
    yield archive.getvalue(), read_archive, (BadFile,)


def dicom(folder: Path) -> Iterator:
    import pydicom

    from data.images import BadFile
    from data.volumes import read_volume

    d = pydicom.dataset.FileDataset("", {}, file_meta=pydicom.dataset.FileMetaDataset(), preamble=bytes(128))
    d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = pydicom.uid.MRImageStorage
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = d.SeriesInstanceUID = "1.2.3"
    d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelSpacing = 14, 12, 1, "MONOCHROME2", [1, 1]
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation, d.NumberOfFrames = 16, 16, 15, 0, 1
    d.ImageOrientationPatient, d.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    d.PixelData = np.random.default_rng(0).integers(1, 900, (14, 12), np.uint16).tobytes()
    file = io.BytesIO()
    d.save_as(file, enforce_file_format=True)
    yield file.getvalue(), lambda data: read_volume(_put(folder / "hostile.dcm", data)), (BadFile,)


def nifti(folder: Path) -> Iterator:
    import nibabel

    from data.images import BadFile
    from data.volumes import read_volume, volume_frame

    values = np.random.default_rng(0).gamma(2, 100, (12, 14, 6)).astype(np.int16)
    volume = nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0]))
    plain = volume.to_bytes()

    def reader(suffix: str, wrap: Callable[[bytes], bytes] = bytes) -> Callable[[bytes], None]:
        path = folder / f"hostile{suffix}"

        def read(data: bytes) -> None:
            with contextlib.suppress(BadFile):
                height, width = volume_frame(_put(path, wrap(data)))[0]
                assert height * width < 1 << 27
            for _, plane in read_volume(path)[0]:
                assert plane.dtype == np.uint8

        return read

    yield plain, reader(".nii"), (BadFile,)
    yield plain, reader(".nii.gz", lambda data: gzip.compress(data, 1)), (BadFile,)
    yield gzip.compress(plain), reader(".nii.gz"), (BadFile,)


def sites(folder: Path) -> Iterator:
    from jobs.cluster.sites import choose_site, load_sites, user_file
    from jobs.config.specs import ConfigError

    os.environ["XDG_CONFIG_HOME"] = str(folder)
    user_file().parent.mkdir(exist_ok=True)

    def read(data: bytes) -> None:
        _put(user_file(), data)
        for name in load_sites():
            choose_site(name, ["gpu"]).on("a100,gpu").data_path("adni256")

    yield (ROOT / "jobs" / "sites.toml").read_bytes(), read, (ConfigError,)
    yield (
        b'[mine]\npartition = "gpu"\nmargin = 90\nrequeue = true\nhosts = ["a*"]\n[mine.data]\nadni = "/d"\n',
        read,
        (ConfigError,),
    )


def run_files(folder: Path) -> Iterator:
    """config.json, data.json, status.json, attempts.jsonl and jobs.json of a run directory."""
    from dataclasses import asdict

    from jobs.cluster import decide, status
    from jobs.config import parsing, specs
    from jobs.run.attempt import check_data
    from jobs.run.find import read_jobs
    from jobs.run.resume import compare_with_run
    from jobs.run.rundir import RunDir
    from jobs.run.states import RunDirError, Verdict

    run = RunDir(folder / "run")
    run.create()
    config = parsing.parse_config(specs.GanConfig, ["--preset", "quickstart", "--run", str(run.path)])
    refusals, quiet = (specs.ConfigError, RunDirError), lambda *_: None

    def read_config(data: bytes) -> None:
        _put(run.config, data)
        compare_with_run(run, config)

    yield json.dumps(asdict(config)).encode(), read_config, refusals

    def read_data(data: bytes) -> None:
        _put(run.path / "data.json", data)
        check_data(RunDir(run.path), config, ["AD", "NC"], {"train": "ab"}, quiet)

    yield b'{"classes": ["AD", "NC"], "digests": {"train": "ab"}}', read_data, refusals

    def read_state(data: bytes) -> None:
        """What status, why and the requeueing make of a run whose files somebody else wrote: never an exception."""
        first, _, second = data.partition(b"--")
        _put(run.attempts, first)
        _put(run.path / "status.json", second)
        _put(run.path / "jobs.json", second)
        lines, about = run.read_attempts(), read_jobs(run.path)
        decision = decide.Decision(Verdict.REQUEUE, "", counted=True)
        decide.within_budget(decision, 5, lines, decide.started_by_person(about), 3)
        status.view_run(run.path, {})

    line = b'{"event": "start", "time": 5.0, "nimg": 8, "attempt": 1}\n'
    line += b'{"event": "decision", "decision": "requeue", "counted": true, "nimg": 8, "time": 6}\n'
    yield (
        line + b'--{"state": "running", "updated": 5.5, "kimg": 0.1, "attempt": 1, "submitted": [{"id": "7", "kind": '
        b'"main", "time": 3}], "argv": ["--x"]}',
        read_state,
        (),
    )


def slurm(folder: Path) -> Iterator:
    from jobs.cluster import slurm

    job = "123_4|RUNNING|None|u|gpu|n[1-2]|1:02|4:00:00|2026-01-02T03:04:05|N/A|(null)|a name|/x|/w".replace(
        "|", slurm.FIELD
    )
    yield (
        (job + slurm.RECORD + "\n").encode(),
        lambda data: slurm.parse_squeue(data.decode(errors="replace")),
        (slurm.SlurmError,),
    )
    shown = "JobId=12 JobName=x y\n   UserId=u(1) JobState=RUNNING Reason=None Restarts=1 ExitCode=0:9\n"
    shown += "   TimeLimit=1-00:00:00 PreemptTime=2026-01-02T03:04:05 Requeue=1\n"
    yield shown.encode(), lambda data: slurm.parse_show_job(data.decode(errors="replace")), (slurm.SlurmError,)
    row = "12|FAILED|1:0|gpu|n1|62|240|2026-01-02T03:04:05|Unknown|u|x|None|/w".replace("|", slurm.FIELD)
    yield row.encode(), lambda data: slurm.parse_sacct(data.decode(errors="replace")), (slurm.SlurmError,)
    part = "PartitionName=gpu AllowAccounts=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=NONE State=UP\n"
    nodes = "gpu|2|64|512000|gpu:a100:4(S:0-1),shard:16".replace("|", slurm.FIELD) + slurm.RECORD

    yield part.encode(), lambda data: slurm.parse_partitions(data.decode(errors="replace"), nodes), (slurm.SlurmError,)
    yield nodes.encode(), lambda data: slurm.parse_partitions(part, data.decode(errors="replace")), (slurm.SlurmError,)
    yield b"1-02:03:04", lambda data: slurm.parse_time(data.decode(errors="replace")), (slurm.SlurmError,)


def checkpoint(folder: Path) -> Iterator:
    import torch

    from jobs.training.checkpoint import CheckpointError, Checkpoints

    store = Checkpoints(folder / "checkpoints", say=lambda text: None)
    store.folder.mkdir()
    store.save(
        8, {"G": {"w": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16)}, "opt": {0: {"step": 3}}, "n": 8}
    )
    store.wait(raise_errors=True)
    path, sidecar = store.folder / "000000000008.pt", store.folder / "000000000008.json"
    content, about = path.read_bytes(), sidecar.read_bytes()

    def read(data: bytes) -> None:
        """With a checksum that fits, as a stranger would write it."""
        _put(path, data)
        _put(
            sidecar,
            json.dumps(
                {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "nimg": 8, "healthy": True}
            ).encode(),
        )
        store.load_latest()

    def read_sidecar(data: bytes) -> None:
        _put(path, content)
        _put(sidecar, data)
        store.committed()
        store.load_latest()

    yield content, read, (CheckpointError,)
    yield about, read_sidecar, (CheckpointError,)


def metrics(folder: Path) -> Iterator:
    os.environ["MPLCONFIGDIR"] = str(folder)
    from jobs.view.metrics import read_metrics
    from jobs.view.plots import Curves, draw_losses

    path = folder / "metrics.jsonl"
    rows = b"".join(
        json.dumps({"nimg": n, "kimg": n / 1000, "loss_G": 0.5, "loss_D": n / 7, "r1": None, "diversity": 1.0}).encode()
        + b"\n"
        for n in (0, 8, 16)
    )
    count = [0]

    def read(data: bytes) -> None:
        found = read_metrics(_put(path, data))
        if count[0] % 20 == 0:  # a plot takes a while
            draw_losses({"run": Curves(found)})
        count[0] += 1

    yield rows, read, ()


def weights(folder: Path) -> Iterator:
    import torch

    from jobs.config.specs import ConfigError
    from jobs.predict.trained import read_model
    from jobs.training.weights import WeightsError, read_weights, write_weights
    from models.stylegan2 import Generator

    torch.manual_seed(0)
    shape = dict(resolution=32, channels=1, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=4)
    G, path = Generator(**shape, num_classes=0), folder / "hostile.safetensors"
    geometry = dict(source_height=32, source_width=32, square=32, crop=0, resolution=32)
    write_weights(
        path,
        {"G_ema": G.state_dict()},
        {"job": "stylegan2", "config": shape, "classes": ["AD", "NC"], "geometry": geometry, "nimg": 8},
    )
    content = path.read_bytes()
    length = struct.unpack_from("<Q", content)[0]

    def read(data: bytes) -> None:
        read_weights(_put(path, data))

    def read_resealed(data: bytes) -> None:
        """A changed header with its length put right, into the network."""
        _put(path, struct.pack("<Q", len(data)) + data + content[8 + length :])
        read_model(path, torch.device("cpu"))

    yield content, read, (WeightsError,)
    yield content[8 : 8 + length], read_resealed, (ConfigError,)


def latents(folder: Path) -> Iterator:
    import torch

    from data.latents import build_latents, open_latents
    from data.pack import ensure_pack

    made = ensure_pack("phantom:6", resolution=16, split="all", cache_dir=folder, log=lambda *_: None, progress=False)
    path = folder / "latents.npy"
    encode = lambda x: (torch.zeros(len(x), 2, 4, 4), torch.zeros(len(x), 2, 4, 4))  # noqa: E731
    build_latents(made, encode, "sha", path, device="cpu", log=lambda *_: None)
    content, about = path.read_bytes(), path.with_suffix(".json").read_bytes()

    def read(data: bytes) -> None:
        _put(path.with_suffix(".json"), about)
        open_latents(_put(path, data), made, "sha", verify=False)

    def read_about(data: bytes) -> None:
        _put(path, content)
        _put(path.with_suffix(".json"), data)
        open_latents(path, made, "sha")

    yield content, read, ()
    yield about, read_about, ()


READERS = {
    f.__name__: f
    for f in (pack, image, formats, dicom, nifti, sites, run_files, slurm, checkpoint, metrics, weights, latents)
}


# --- the run ----------------------------------------------------------------------------------------------------------
def _put(path: Path, data: bytes) -> Path:
    """Write the input; this one write is ours and not the reader's."""
    global armed
    was, armed = armed, False
    path.write_bytes(data)
    armed = was
    return path


def virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def feed(name: str, folder: Path, seed: int, budget: int) -> None:
    global armed
    rng, counts = random.Random(f"{seed} {name}"), [0, 0]
    folder.mkdir()
    seeds = list(READERS[name](folder))
    for content, read, _ in seeds:
        read(content)  # the undamaged one is read, and imports that a reader makes late are made
    resource.setrlimit(resource.RLIMIT_AS, (virtual_bytes() + ROOM, resource.RLIM_INFINITY))
    for i in range(budget):
        content, read, expected = seeds[i % len(seeds)]
        data = mutated(content, rng)
        armed = True
        try:
            read(data)
            counts[0] += 1
        except expected as error:
            counts[1] += 1
            if len(str(error).splitlines()) != 1 or len(str(error)) > 1500:
                fail(name, folder, i, data, f"not one clear line: {str(error)[:2000]!r}")
        except BaseException:
            fail(name, folder, i, data, traceback.format_exc())
        finally:
            armed = False
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    print(f"{name}: {counts[0]} read, {counts[1]} refused")


def fail(name: str, folder: Path, number: int, data: bytes, why: str) -> None:
    global armed
    armed = False
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    path = folder / f"input-{number}"
    path.write_bytes(data)
    print(f"{name}: input {number}, kept in {path}\n{why}", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    sys.addaudithook(guard)
    where, seed, budget, *names = sys.argv[1:]
    for reader in names:
        feed(reader, Path(where) / reader, int(seed), int(budget))
