"""Make folders that hold every kind of bad or odd file a real data set holds (no images are stored in the
repository)."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 64  # as ADNI's 240 x 256: four rows less than the square


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 (height, width): a textured disc with a bright front (top) and a brighter left, so that no flip goes
    unseen."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    texture = np.random.default_rng(seed).uniform(0, 60, (height, width))
    return np.where(x**2 + y**2 < 0.8, 120 - 50 * y - 15 * x + texture, 0).clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@dataclass
class BadFolder:
    root: Path
    good: list[str] = field(default_factory=list)
    shown: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # odd but readable files: what a viewer shows, uint8 (H, W)
    tolerance: dict[str, int] = field(default_factory=dict)  # lossy ones
    bad: dict[str, str] = field(default_factory=dict)  # name: a word of the reason that must be given


def make_bad_folder(root: Path, good: int = 12) -> BadFolder:
    """A flat folder with `good` plain slices, every readable oddity, every bad file and every kind of junk."""
    folder = BadFolder(root)
    for i in range(good):
        name = f"{100 + i}_{i}.png"
        save(root / name, picture(i))
        folder.good.append(name)
    _add_odd(folder)
    _add_bad(folder)
    _add_junk(root)
    return folder


def _add_odd(folder: BadFolder) -> None:
    root, grey = folder.root, picture(1000)

    def add(name: str, image: Image.Image, shown: np.ndarray, tolerance: int = 0, **options) -> None:
        image.save(root / name, **options)
        folder.shown[name], folder.tolerance[name] = shown, tolerance

    add("900_1.png", Image.fromarray(grey.astype(np.uint16) * 257), grey)  # 16 bit, full range
    add("900_2.tif", Image.fromarray(grey.astype(np.uint16) * 257), grey)
    palette = Image.fromarray(255 - grey).convert("P")
    palette.putpalette(
        [v for i in range(256) for v in (255 - i,) * 3]
    )  # an inverted palette: indices are not grey values
    add("900_3.png", palette, grey)
    add("900_4.jpeg", Image.fromarray(grey).convert("RGB").convert("CMYK"), grey, 8, quality=98)
    alpha = np.where(np.arange(WIDTH)[None] < WIDTH // 2, 255, 0).astype(np.uint8).repeat(HEIGHT, 0)
    half = np.where(alpha > 0, grey, 0).astype(np.uint8)
    add(
        "900_5.png", Image.fromarray(np.dstack([grey, grey, grey, alpha])), half
    )  # white under transparent pixels stays hidden
    add("900_6.png", Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]), half)
    add("900_7.png", Image.fromarray(grey > 100), np.where(grey > 100, 255, 0).astype(np.uint8))
    add("900_8.tif", Image.fromarray((grey / 255).astype(np.float32)), grey, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    add("900_9.jpg", Image.fromarray(np.rot90(grey)), grey, 8, quality=98, exif=exif)
    add("900_10.JPEG", Image.fromarray(grey), grey, 8, quality=98)
    add("900_11.png", Image.fromarray(grey).convert("RGB"), grey)
    add("900_12.bmp", Image.fromarray(grey), grey)
    renamed = root / "900_13.png"  # a JPEG called .png: every viewer shows it
    Image.fromarray(grey).save(renamed, format="JPEG", quality=98)
    folder.shown[renamed.name], folder.tolerance[renamed.name] = grey, 8


def _add_bad(folder: BadFolder) -> None:
    root, bad = folder.root, folder.bad
    jpeg = save(root / "901_1.jpeg", picture(2000), quality=95)
    png = save(root / "901_2.png", picture(2001))
    for path in (jpeg, png):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        bad[path.name] = "truncated"
    (root / "901_3.png").touch()
    bad["901_3.png"] = "zero"
    (root / "901_4.png").write_text("this is no picture\n")
    bad["901_4.png"] = "not an image"
    (root / "901_5.jpeg").write_text("<html>404 Not Found</html>")
    bad["901_5.jpeg"] = "not an image"
    (root / "901_6.png").write_bytes(png_bomb())
    bad["901_6.png"] = "bomb"
    (root / "901_7.png").write_bytes(png_bomb(10000, 10000))  # Pillow itself would only warn
    bad["901_7.png"] = "bomb"
    (root / "901_8.jpeg").mkdir()
    save(root / "901_8.jpeg" / "1_1.png", picture(3000))
    bad["901_8.jpeg"] = "folder"
    os.mkfifo(root / "901_9.png")
    bad["901_9.png"] = "regular"
    (root / "901_10.png").symlink_to("nowhere.png")
    bad["901_10.png"] = "No such file"
    (root / "901_11.png").symlink_to("901_11.png")
    bad["901_11.png"] = "links"
    (root / "901_12.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    bad["901_12.png"] = "not an image"
    tif = save(root / "901_13.tif", picture(2002))
    tif.write_bytes(tif.read_bytes()[:200])
    bad["901_13.tif"] = "truncated"


def _add_junk(root: Path) -> None:
    for name in (
        ".DS_Store",
        "._100_0.png",
        "Thumbs.db",
        "desktop.ini",
        "100_0.png.part",
        "100_1.png.crdownload",
        "notes.txt",
        ".100_2.png.Xy12Zq",
    ):
        (root / name).write_bytes(b"junk")
    for name in (".ipynb_checkpoints/100_0-checkpoint.png", "__MACOSX/100_0.png", ".git/100_0.png"):
        save(root / name, picture(0))
    (root / "loop").symlink_to(".")
    (root / "up").symlink_to("..")
    (root / "empty").mkdir()


def png_bomb(width: int = 100_000, height: int = 100_000) -> bytes:
    """A PNG of a few bytes whose header promises gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


# --- trees ------------------------------------------------------------------------------------------------------------
def make_adni(root: Path, json_shape: str | None = "dict", slices: int = 3, size=(HEIGHT, WIDTH)) -> dict[str, str]:
    """AD_NC below `root`: train scans 101-108, test scans 201-204; each patient has scans n and n + 1, and the patient
    of train scan 101 also has test scan 201. Returns scan -> patient."""
    import json

    patients, n = {}, 0
    for split, scans in (("train", range(101, 109)), ("test", range(201, 205))):
        for scan in scans:
            folder = root / "AD_NC" / split / ("AD" if scan % 2 else "NC")
            patients[str(scan)] = f"{scan // 2:03d}_S_{scan // 2:04d}"
            for z in range(slices):
                n += 1
                save(folder / f"{scan}_{70 + z}.jpeg", picture(n, *size), quality=95)
    patients["201"] = patients["101"]
    entries = {
        f"I{s}" if i % 2 else s: {"label": i % 3, "raw": f"/ADNI/{p}/MPRAGE/I{s}/x.nii"}
        for i, (s, p) in enumerate(patients.items())
    }
    if json_shape == "dict":
        text = json.dumps(entries)
    elif json_shape == "nested":
        text = json.dumps({"about": "x", "data": {k: {"meta": [v]} for k, v in entries.items()}})
    elif json_shape == "list":
        text = json.dumps([{"image_id": k, **v} for k, v in entries.items()])
    if json_shape:
        (root / "meta_data_with_label.json").write_text(text)
    return patients


def make_oasis(root: Path, cases: int = 4, slices: int = 3) -> None:
    """keras_png_slices_{train,validate,test} and the masks beside them."""
    case = 0
    for split, count in (("train", cases), ("validate", 1), ("test", 2)):
        for _ in range(count):
            case += 1
            for z in range(slices):
                save(
                    root / f"keras_png_slices_{split}" / f"case_{case:03d}_slice_{z}.nii.png",
                    picture(100 * case + z, 64, 64),
                )
                mask = np.full((64, 64), 85, np.uint8)
                save(root / f"keras_png_slices_seg_{split}" / f"seg_{case:03d}_slice_{z}.nii.png", mask)
