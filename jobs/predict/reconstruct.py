"""`reconstruct`: slices through a VAE and back."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from data.batches import to_float
from data.files import say
from data.pack import ensure_held_out, ensure_pack
from data.packfile import Pack
from data.walk import DataError
from jobs.config.specs import ConfigError
from jobs.predict.autoencoder import VaeModel
from jobs.predict.features import data_of, rows_of, shape_of
from jobs.predict.output import Output
from models.metrics import by_subject, head_mask, psnr, ssim

COLUMNS = 8  # at most
ROWS = ("slice", "through the VAE", "3 x difference")


def beside(real: torch.Tensor, output: torch.Tensor) -> np.ndarray:
    """What ROWS names, uint8 (3, ...), of slices and their reconstructions in 0..1."""
    shown = torch.stack([real, output, (3 * (real - output).abs()).clamp(max=1)])
    return (shown * 255).round().to(torch.uint8).cpu().numpy()


def reconstruct(
    model: VaeModel, pack: Pack, out: Output, *, number: int | None = None, split: str = "auto", batch: int = 32
) -> None:
    """PSNR and SSIM of slices against their reconstructions, over all pixels and inside the head, and a grid of both.

    number: how many, spread over the pack (default all). `split` is what the pack is of, for the file of settings.
    """
    number = min(number or len(pack), len(pack))
    settings = {"split": split, "number": number, **model.about, "data": pack.digest}
    out = out.claim(model.nimg, settings)
    pick = np.linspace(0, len(pack) - 1, number).round().astype(int)
    scores: dict[str, list[float]] = {name: [] for name in ("l1", "psnr", "ssim", "psnr_head", "ssim_head")}
    wanted = set(np.linspace(0, number - 1, min(number, COLUMNS)).round().astype(int).tolist())
    shown = []
    for start in tqdm(range(0, number, batch), unit=" batches", disable=None):
        pixels = rows_of(pack, pick[start : start + batch])
        output = model.decode(model.encode(pixels))
        real = (to_float(pixels.to(model.device)) + 1) / 2
        mask = head_mask(real)
        values = (
            (real - output).abs().flatten(1).mean(1),
            psnr(output, real),
            ssim(output, real),
            psnr(output, real, mask),
            ssim(output, real, mask),
        )
        for name, value in zip(scores, values, strict=True):
            scores[name] += value.double().tolist()
        for i in (i for i in range(len(pixels)) if start + i in wanted):
            shown.append(beside(real[i], output[i]))
    figures, table = by_subject(scores, [pack.subjects[i] or pack.names[i] for i in pick])
    grid = np.concatenate(np.stack(shown, 1))
    captions = [f"{scores['psnr'][i]:.1f} dB" for i in sorted(wanted)]
    note = "Above each slice its PSNR. A difference is the absolute one."
    out.grid("reconstruct.png", model.original(grid), len(shown), row_labels=ROWS, column_labels=captions, note=note)
    out.csv("reconstruct.csv", ["subject", "slices", *scores], table)
    out.json("reconstruct.json", model, settings, data=pack.meta["describe"], slices=number, **figures)
    for name, (mean, sd) in figures["mean and sd over subjects"].items():
        say(f"{name:10} {mean:8.4g} +- {sd:.3g}")
    files = [f"reconstruct.{kind}" for kind in ("png", "csv", "json")]
    out.tell(model, f"{number} slices of {figures['subjects']} subjects", *files)


def slices_of(model: VaeModel, data: str = "", split: str = "auto") -> Pack:
    """The pack of `data` at the VAE's size, of patients that it was not trained on where there are any."""
    spec, shape = data_of(model, data), shape_of(model)
    try:
        if split != "auto":
            return ensure_pack(spec, split=split, **shape)
        said: list[str] = []  # only what turned out well: an error is one line
        pack = ensure_held_out(spec, "auto", log=said.append, **shape) or ensure_pack(spec, log=said.append, **shape)
        say("\n".join(said))
        return pack
    except DataError as error:
        raise ConfigError(str(error)) from None
