"""`tsne`: features or latents on a plane, by class and by subject (van der Maaten 2008)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.files import atomic_write
from jobs.config.specs import ConfigError
from jobs.predict.autoencoder import VaeModel
from jobs.predict.conditions import Asked, classes_of
from jobs.predict.features import (
    MEASURE_CHUNK,
    Reference,
    generated,
    given_features,
    measure,
    open_data,
    open_features,
    rows_of,
)
from jobs.predict.gan import GanModel
from jobs.predict.named import UsageError
from jobs.predict.output import Output
from jobs.training import ranks
from jobs.view.pictures import scatter_plots


def tsne(
    model,
    out: Output,
    *,
    number: int = 500,
    seed: int = 0,
    label: Asked = "all",
    reference: Reference = Reference(),
    how: dict,
) -> None:
    """A picture and a CSV: features of real and generated slices by class and by subject, and the w of a StyleGAN2 by
    class; the latents of real slices by class and by subject where the model is a VAE. `how`: as model.sample takes it.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ConfigError("tsne needs scikit-learn, which nothing else does: pip install scikit-learn") from None
    of_vae = isinstance(model, VaeModel)
    if of_vae and reference.feature_weights:
        raise UsageError("--feature-weights: of a VAE the latents themselves are shown; leave it out")
    rt = ranks.Runtime(0, 1, 0, model.device, torch.get_num_threads())
    told = model.labels(label, list(range(number)))
    labels = None if told is None else classes_of(told, model.columns)
    given = given_features(reference.feature_weights)
    real = open_data(model, reference.data, print)
    settings = {"seed": seed, **model.about} if of_vae else model.settings(seed=seed, label=label, **how)
    settings |= {"number": number, "data": real.digest, "feature_weights": reference.feature_weights or ""}
    out = out.claim(model.nimg, settings)
    rows = torch.linspace(0, len(real.heldout) - 1, min(number, len(real.heldout))).round().long()

    def embed(x: torch.Tensor) -> np.ndarray:
        perplexity = min(30.0, (len(x) - 1) / 3)
        way = dict(init="pca", perplexity=perplexity, random_state=seed % (1 << 32))
        return TSNE(2, **way).fit_transform(x.double().cpu().numpy())

    classes = real.heldout.classes
    real_classes = [classes[k] if k >= 0 else "" for k in real.labels(real.heldout)[rows].tolist()]
    subjects = [real.heldout.subjects[i] for i in rows.tolist()]
    fake_classes = ["" if labels is None or labels[i] < 0 else model.classes[int(labels[i])] for i in range(number)]
    if of_vae:
        what = f"latents (means) of {Path(model.path).absolute().parent.name}"
        parts = tqdm(rows.split(MEASURE_CHUNK), unit=" chunks", disable=None)
        latents = torch.cat([model.encode(rows_of(real.heldout, part.numpy())) for part in parts])
        points = embed(latents.flatten(1))
        table = [("real", *point, k, s) for point, k, s in zip(points, real_classes, subjects, strict=True)]
    else:
        network, what = open_features(given, real.train, out.folder, rt)
        fake, _ = measure(rt, network, generated(model, seed, label, how), number, "generated")
        truth, _ = measure(
            rt, network, lambda r: rows_of(real.heldout, rows[r[0] : r[-1] + 1].numpy()), len(rows), "real"
        )
        points = embed(torch.cat([truth, fake]))
        table = [("real", *point, k, s) for point, k, s in zip(points, real_classes, subjects, strict=False)]
        table += [("generated", *point, k, "") for point, k in zip(points[len(rows) :], fake_classes, strict=True)]
    if isinstance(model, GanModel) and model.classes:
        z = model.draw_z(seed, list(range(number)))
        table += [("w", *p, k, "") for p, k in zip(embed(model.map_latents(z, told)), fake_classes, strict=True)]
    lines = [[source, float(x), float(y), name, subject] for source, x, y, name, subject in table]
    out.csv("tsne.csv", ["source", "x", "y", "class", "subject"], lines)
    atomic_write(out / "tsne.png", scatter_plots(table, "latents" if of_vae else "features", what))
    settings["features"] = what
    out.json("tsne.json", model, settings, data=real.about(), real=len(rows))
    made = "" if of_vae else f" and {number} generated"
    out.tell(model, f"t-SNE of {len(rows)} real{made} slices", *(f"tsne.{kind}" for kind in ("png", "csv", "json")))
