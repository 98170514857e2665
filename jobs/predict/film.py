"""`film`: the samples of a run over its training, of the same latents in every frame."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data.files import atomic_write, read_bytes, say, temporary_for, words
from jobs.config.specs import ConfigError
from jobs.predict.named import run_of
from jobs.predict.output import Output
from jobs.run.rundir import RunDir
from jobs.view.grids import image_grid
from jobs.view.markup import MAX_PICTURE
from jobs.view.pictures import gif_of
from jobs.view.report import pick

MOST, SIDE = 200, 1024  # frames of a film and pixels of its longer side at most: it is put together in memory
HOLD = 2  # seconds that the last frame stays


def film(named: str, output: Callable[[float], Output], *, fps: int = 5) -> None:
    """film.gif and, where imageio-ffmpeg is installed, film.mp4; output(images seen): where to. ConfigError where there
    are no two samples yet."""
    run = RunDir(run_of(named).resolve())
    found = sorted(path for path in run.samples.glob("*.png") if path.name[0].isdigit())
    frames, kimg = frames_of(pick(found, MOST), run.path)
    if len(frames) < 2:
        so_far = "one grid" if frames else "no grid"
        raise ConfigError(f"{run.path}: {so_far} of samples so far; there is one more every --sample-kimg")
    nimg, settings = 1000 * float(kimg[-1]), {"run": run.path.name, "frames": len(frames), "fps": fps}
    out = output(nimg).claim(nimg, settings)
    out.note("film.json", {"command": "film", "nimg": nimg, "settings": settings})
    shown = np.stack(frames + frames[-1:] * (HOLD * fps))
    atomic_write(out / "film.gif", gif_of(shown, fps))
    left = f" of {len(found)} grids" if len(frames) < len(found) else ""
    say(f"{len(frames)} frames{left}, {kimg[0]} to {kimg[-1]} kimg\n  {out / 'film.gif'}")
    if problem := write_mp4(out / "film.mp4", shown, fps):
        say(f"no film.mp4: {problem}")
    else:
        say(f"  {out / 'film.mp4'}")


def frames_of(paths: list[Path], inside: Path) -> tuple[list[np.ndarray], list[str]]:
    """(frames uint8 (C, H, W), kimg of each) of grids named by their kimg; those of another size than the last, as a
    run had before its resolution changed, are left out."""
    frames: list[np.ndarray] = []
    names = []
    for path in reversed(paths):
        try:
            with Image.open(io.BytesIO(read_bytes(path, MAX_PICTURE, inside)), formats=("PNG",)) as picture:
                picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                pixels = np.asarray(picture.convert("L" if picture.mode == "L" else "RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            say(f"{path.name} is left out: {words(error)}")
            continue
        kimg = f"{float(path.stem):g}"
        grid = image_grid(pixels[None, None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[None], 1,
                          column_labels=[f"{kimg} kimg"])  # fmt: skip
        frame = np.asarray(grid)[None] if grid.mode == "L" else np.asarray(grid).transpose(2, 0, 1)
        if frames and frame.shape != frames[0].shape:
            say(f"{path.name} is left out: {pixels.shape[1]}x{pixels.shape[0]}, the last one is of another size")
            continue
        frames.append(frame)
        names.append(kimg)
    return frames[::-1], names[::-1]


def write_mp4(path: Path, frames: np.ndarray, fps: int) -> str:
    """frames uint8 (N, C, H, W) as H.264, which browsers and slides play. Returns why not, '' where it was written."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return "imageio-ffmpeg is not installed, which nothing else needs: pip install imageio-ffmpeg"
    frames = np.pad(frames, [(0, 0), (0, 0), *((0, side % 2) for side in frames.shape[2:])], mode="edge")
    temporary = temporary_for(path)
    size, grey = frames.shape[:1:-1], frames.shape[1] == 1
    try:
        writer = imageio_ffmpeg.write_frames(
            str(temporary), size, fps=fps, pix_fmt_in="gray" if grey else "rgb24", codec="libx264", quality=8,
            macro_block_size=2, ffmpeg_log_level="error", output_params=["-f", "mp4"],
        )  # fmt: skip
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame.transpose(1, 2, 0)))
        writer.close()
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        return f"ffmpeg could not write it ({words(error)})"
    return ""
