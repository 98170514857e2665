"""`interpolate`, `mix` and `denoise`: what lies between pictures, and how they come about."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from data.files import atomic_write
from jobs.predict.conditions import Asked
from jobs.predict.denoiser import DiffusionModel
from jobs.predict.gan import GanModel
from jobs.predict.named import UsageError
from jobs.predict.output import Output
from jobs.view.grids import BACKGROUND, enlarged, save_png
from jobs.view.pictures import denoise_gif, denoise_strip, gif_of
from models.styles import mix_layers, style_layers

STRIP_ROWS, STRIP_COLUMNS = 16, 8
MAX_FRAMES = 20_000  # of a GIF, which is put together in memory


def check_frames(number: int, steps: int) -> None:
    """UsageError for a film that is too long."""
    if number * steps > MAX_FRAMES:
        raise UsageError(f"--number {number} x --steps {steps} are more than {MAX_FRAMES} frames; lower one of them")


def interpolate(
    model: GanModel | DiffusionModel,
    out: Output,
    *,
    number: int = 6,
    steps: int = 24,
    seed: int = 0,
    label: Asked = "all",
    fps: int = 20,
    **how,
) -> None:
    """From latent 0 to 1, 2, ... and back to 0, as a GIF that loops, and a strip of its frames.

    `how`: what model.interpolate takes beside steps, seed and label.
    """
    check_frames(number, steps)
    settings = film_settings(model, seed, label, how) | {"frames_per_latent": steps, "number": number, "fps": fps}
    out = out.claim(model.nimg, settings)
    keys, frames, strip = list(range(number)), [], []
    columns = min(steps, STRIP_COLUMNS)
    shown = [steps * j // columns for j in range(columns)]
    for k in tqdm(keys, unit=" latents", disable=None):
        images = model.interpolate(k, (k + 1) % number, steps, seed, label, **how)
        frames.append(images)
        if k < STRIP_ROWS:
            strip.append(images[shown])
    film = np.concatenate(frames)
    atomic_write(out / "interpolate.gif", gif_of(enlarged(film, out.scale), fps))
    captions = model.captions(label, keys[: len(strip)])
    out.grid("strip.png", np.concatenate(strip), columns, row_labels=captions)
    out.json("interpolate.json", model, settings, frames=len(film))
    out.tell(model, f"{len(film)} frames", "interpolate.gif", "strip.png", "interpolate.json")


def film_settings(model: GanModel | DiffusionModel, seed: int, label: Asked, how: dict) -> dict:
    """What decides the pictures of `interpolate`, of which `how` is what model.interpolate takes."""
    rest = {name: value for name, value in how.items() if name not in ("calls", "space")}
    if isinstance(model, DiffusionModel):
        return model.settings(seed=seed, label=label, steps=how.get("calls"), **rest) | {"space": "z"}
    settings = model.settings(seed=seed, label=label, **rest) | {"space": how.get("space", "w")}
    del settings["noise"]  # always fixed
    return settings


def mix(
    model: GanModel,
    out: Output,
    *,
    rows: int = 4,
    cols: int = 6,
    styles: str = "coarse",
    seed: int = 0,
    label: Asked = "all",
    **how,
) -> None:
    """A grid: cell (r, c) has the styles of column source c in the layers `styles`, and of row source r elsewhere.

    `how`: truncation and truncation_cutoff.
    """
    try:
        first, last = style_layers(model.G, styles)
    except ValueError as error:
        raise UsageError(str(error)) from None
    settings = model.settings(seed=seed, label=label, **how) | {"rows": rows, "cols": cols, "styles": styles}
    del settings["noise"]  # always fixed
    out = out.claim(model.nimg, settings)
    at_left, on_top = list(range(rows)), list(range(rows, rows + cols))
    left, top = (model.styles(indices, seed, label, **how) for indices in (at_left, on_top))
    top_images = model.synthesise(top)
    shown = [np.full_like(top_images[:1], BACKGROUND), top_images]  # the empty corner, then the sources
    for ws in tqdm(left, unit=" rows", disable=None):
        mixed = mix_layers(ws.expand_as(top), top, first, last)
        shown += [model.synthesise(ws[None]), model.synthesise(mixed)]
    titles: dict = {
        "column_labels": ["", *model.captions(label, on_top)],
        "row_labels": ["", *model.captions(label, at_left)],
    }
    titles["note"] = f"Layers {first} to {last} are of the picture on top, the others of the one at the left."
    out.grid("mix.png", np.concatenate(shown), cols + 1, **titles)
    out.json("mix.json", model, settings, layers_from_top=[first, last], left=at_left, top=on_top)
    what = f"{rows} x {cols} mixed pictures (layers {first}-{last} from the top)"
    out.tell(model, what, "mix.png", "mix.json")


def denoise(
    model: DiffusionModel, out: Output, *, number: int = 4, seed: int = 0, label: Asked = "all", fps: int = 5, **how
) -> None:
    """The way from noise to pictures: what the network is given at each call, and above it what it makes of that."""
    settings = model.settings(seed=seed, label=label, **how) | {"number": number, "fps": fps}
    out = out.claim(model.nimg, settings)
    indices = list(range(number))
    stages: list[np.ndarray] = []
    noise_share: list[float] = []
    for i in tqdm(indices, unit=" pictures", disable=None):
        frames, noise_share = model.denoise(i, seed, label, **how)
        stages.append(frames)
    shown = np.stack(stages)  # (pictures, stages, 2, C, H, W): estimate and state
    captions = [f"{100 * share:.0f} % noise" for share in noise_share] + ["result"]
    save_png(out / "denoise.png", denoise_strip(shown, captions, model.captions(label, indices), out.scale))
    atomic_write(out / "denoise.gif", denoise_gif(shown, captions, fps, out.scale))
    out.json("denoise.json", model, settings, frames=len(captions), noise=noise_share)
    what = f"{number} picture{'s' * (number > 1)} in {len(captions)} stages"
    out.tell(model, what, "denoise.png", "denoise.gif", "denoise.json")
