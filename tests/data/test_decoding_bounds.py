"""Memory while packing, whatever the files: what is hostile takes less than 500 MB, sets less than a gigabyte."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import hostile_files
import numpy as np
import pytest
import tiny
from PIL import Image

from data import build, reading
from data.images import BadFile, look_picture
from data.packfile import check_geometry
from data.tiff import tiff_pages
from data.walk import DataError

PACK = """
import sys
from data.pack import ensure_pack, preview
from data.walk import DataError
for source in sys.argv[2:]:
    for what in (preview, ensure_pack):
        try:
            more = dict(progress=False, workers=8) if what is ensure_pack else {}
            what(source, resolution=int(sys.argv[1]), split="all", log=lambda text: None, **more)
            print("fine")
        except DataError as error:
            print("refused", error)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak(tmp_path, *sources, resolution=64) -> tuple[int, list[str]]:
    """(MB at most, what was said) of a process that looks at these sources and packs them."""
    env = tiny.environment(tmp_path / "packs")
    done = subprocess.run(
        [sys.executable, "-c", PACK, str(resolution), *map(str, sources)],
        cwd=tiny.ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *said, kilobytes = done.stdout.splitlines()
    return int(kilobytes) >> 10, said


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
HOSTILE = {
    "extension.nii.gz": hostile_files.extension_bomb,
    "voxels.nii.gz": hostile_files.voxel_bomb,
    "float.nii.gz": lambda path: hostile_files.voxel_bomb(path, (400, 400, 420), np.float32),
    "double.nii.gz": lambda path: hostile_files.voxel_bomb(path, (400, 400, 420), np.float64),
    "float.tif": lambda path: hostile_files.tiff(path, 8192, "F"),
    "grey.tif": lambda path: hostile_files.tiff(path, 8192, "L"),
    "large.tif": lambda path: hostile_files.tiff(path, 4096, "F"),
    "rgba.png": lambda path: hostile_files.tiff(path, 4096, "RGBA", None),
    "strips.tif": hostile_files.many_strips,
    "tile.tif": hostile_files.huge_tile,
    "frames.gif": hostile_files.many_frames,
}


@needs_proc
def test_hostile_files_take_little_memory(tmp_path):
    """Each alone in its folder: header extensions, voxels, pixels, strips, tiles, frames that would fill gigabytes."""
    pytest.importorskip("nibabel")
    for name, make in HOSTILE.items():
        (tmp_path / name / "x").mkdir(parents=True)
        make(tmp_path / name / "x" / ("s1_" + name))
        assert (tmp_path / name / "x" / ("s1_" + name)).stat().st_size < 40 << 20
    megabytes, said = peak(tmp_path, *(tmp_path / name / "x" for name in HOSTILE))
    assert megabytes < 500 and len(said) == 2 * len(HOSTILE)
    refused = {name for name, line in zip(HOSTILE, said[1::2], strict=True) if line.startswith("refused")}
    assert refused == set(HOSTILE) - {"large.tif", "rgba.png"}


@needs_proc
def test_members_of_archives_take_little_memory(tmp_path):
    for make, name in ((hostile_files.member_bomb, "a.zip"), (hostile_files.array_bomb, "b.npz")):
        make(tmp_path / name)
    megabytes, said = peak(tmp_path, tmp_path / "a.zip", tmp_path / "b.npz")
    assert megabytes < 500 and "refused" in said[1] and "refused" in said[3]


@needs_proc
def test_many_large_files_at_once_stay_below_a_gigabyte(tmp_path):
    """Honest ones, more threads than fit: pictures of 16 megapixels, volumes of 256 cubed, their slices."""
    pytest.importorskip("nibabel")
    for name, make in (
        ("p/s0_1.tif", HOSTILE["large.tif"]),
        ("v/sub-0_T1w.nii", lambda p: hostile_files.honest_volume(p, 256)),
    ):
        (tmp_path / name).parent.mkdir()
        make(tmp_path / name)
        for i in range(1, 5):
            os.link(tmp_path / name, tmp_path / name.replace("0", str(i), 1))
    assert peak(tmp_path, tmp_path / "p", resolution=1024)[0] < 1000
    megabytes, said = peak(tmp_path, tmp_path / "v", resolution=512)
    assert megabytes < 1000 and said == ["fine", "fine"]


def test_the_budget_is_shared_by_all_threads():
    budget, most, lock = reading.Budget(100), [0], threading.Lock()

    def work(size):
        with budget(size):
            with lock:
                most[0] = max(most[0], budget.taken)
            time.sleep(0.005)  # the others come meanwhile

    threads = [threading.Thread(target=work, args=(size,)) for size in (60, 70, 30, 1000, 20, 60, 100) * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert budget.taken == 0 and 60 <= most[0] <= 100 and not any(thread.is_alive() for thread in threads)


def test_what_waits_to_be_written_counts(monkeypatch):
    """Results in order, however large one is; never more in flight than the limit, unless one alone is."""
    monkeypatch.setattr(build, "FLIGHT", 100)
    running, seen, lock = set(), [], threading.Lock()

    def work(item):
        with lock:
            running.add(item)
            seen.append(sum(cost for _, cost in running))
        return item

    done = []
    items = list(enumerate([30, 30, 30, 30, 250, 10, 90, 20]))
    for item, result in build.ordered_map(work, items, 4, cost=lambda item: item[1]):
        assert item == result
        with lock:
            running.discard(item)
        done.append(item)
    assert done == items and max(seen) <= 250


def test_slices_of_one_large_volume_are_made_one_by_one(tmp_path, monkeypatch):
    nibabel = pytest.importorskip("nibabel")
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    (tmp_path / "x").mkdir()
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).uniform(200, 900, (12, 12, 9)).astype(np.float32), np.eye(4)),
        tmp_path / "x" / "sub-1_T1w.nii",
    )
    how = dict(resolution=16, split="all", progress=False, log=lambda text: None)
    from data.pack import ensure_pack

    eager = np.array(ensure_pack(str(tmp_path / "x"), **how).images)
    monkeypatch.setattr(build, "LAZY", 100)
    lazy = ensure_pack(str(tmp_path / "x"), out=tmp_path / "lazy.pack", **how)
    assert np.array_equal(eager, lazy.images) and len(eager) == 9


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_circle_of_pages_ends(tmp_path, order):
    import io
    import struct

    data = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8) + struct.pack(order + "HI", 0, 8)
    with pytest.raises(BadFile, match="circle"):
        tiff_pages(io.BytesIO(data), 1 << 20)


def test_pages_have_an_end(tmp_path):
    Image.new("L", (4, 4)).save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (4, 4), i) for i in range(1, 9)]
    )
    assert look_picture(tmp_path / "a.gif")[0] == 9
    hostile_files.many_frames(tmp_path / "b.gif", 5000)
    with pytest.raises(BadFile, match="more than 4,096 pages"):
        look_picture(tmp_path / "b.gif")


@pytest.mark.parametrize("side", [4097, 1 << 14, 1 << 20])
def test_a_geometry_of_thousands_of_pixels_is_one_line(side):
    with pytest.raises(DataError, match="geometry is impossible") as caught:
        check_geometry(dict(source_height=side, source_width=side, square=side, crop=0, resolution=32))
    assert "\n" not in str(caught.value)


def test_pictures_of_a_set_that_are_too_wide_are_one_line(tmp_path, monkeypatch):
    from data.pack import ensure_pack

    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    (tmp_path / "x").mkdir()
    for i in range(3):
        Image.new("L", (5000, 20)).save(tmp_path / "x" / f"s{i}_1.png")
    with pytest.raises(DataError, match="5000x20 are too large; scale them to at most 4096"):
        ensure_pack(str(tmp_path / "x"), resolution=64, split="all", progress=False, log=lambda text: None)
