"""The space that a diffusion run works in: the latents of its VAE, or pixels; and the way back to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data.batches import Batches
from data.columns import Column
from data.files import atomic_write, sha256_of
from data.latents import LatentBatches, Latents, ensure_latents
from data.packfile import Pack
from jobs.config.specs import ConfigError, DiffusionConfig
from jobs.predict.conditions import labels_of
from jobs.run import stopping
from jobs.run.rundir import RunDir
from jobs.run.vae import copied_vae, find_vae, refuse_collapsed
from jobs.training import devices, ranks
from jobs.training.weights import read_weights
from models import loading
from models.vae import VAE, LatentScale, posterior_sample

CHUNK = 32  # of them go through the network at once; ranks take chunks in turn


# --- the VAE ----------------------------------------------------------------------------------------------------------
def adopt_vae(c: DiffusionConfig, run: RunDir, say: Callable[[str], None]) -> None:
    """Rank 0: copy the VAE's weights into this run, once. What becomes of the VAE's run later does not matter to it."""
    mine = copied_vae(run.path)
    if mine.exists():
        return
    source = find_vae(c)
    load_vae(c, source)
    if not source.with_name("DONE").exists():
        say(f"WARNING: the VAE of {source.parent} is not finished; its weights are taken as they are now")
    atomic_write(mine, source.read_bytes())
    say(f"VAE: {source}, copied to {mine.name}")


def load_vae(c: DiffusionConfig, path: Path) -> VAE:
    """The VAE in a weights file; ConfigError where it does not fit this run."""
    tensors, about = read_weights(path)
    of_vae = about["config"]
    if about.get("job") != "vae":
        raise ConfigError(f"--vae {path}: the weights of a {about.get('job')} run; name a run of pretrain_vae.py")
    if path != copied_vae(Path(c.run)):  # what the run has copied was accepted when it began
        refuse_collapsed(c, path, about.get("verdict"))
    for name in ("resolution", "channels", "crop"):
        if of_vae.get(name) != getattr(c, name):
            raise ConfigError(
                f"--vae {path}: trained with --{name} {of_vae.get(name)}, this run has --{name} {getattr(c, name)}; "
                "make them equal"
            )
    try:
        return loading.load_vae(tensors, of_vae)
    except ValueError as error:
        raise ConfigError(f"--vae {path}: {error}") from None


def encode_packs(
    c: DiffusionConfig, run: RunDir, packs: list[Pack], meeting: ranks.Meeting, device: torch.device, say
) -> list[Latents]:
    """The cached latents of each pack, encoded where they are not there yet."""
    sha = sha256_of(copied_vae(run.path))
    torch.set_num_threads(c.threads or devices.default_threads(ranks.local_world(meeting.world)))
    devices.keep_freed_memory(device)
    vae = load_vae(c, copied_vae(run.path)).to(device)
    verify = meeting.rank == 0
    return [
        ensure_latents(pack, vae.encode, sha, device=device, poll=stopping.raise_if_asked, log=say, verify=verify)
        for pack in packs
    ]


# --- data -------------------------------------------------------------------------------------------------------------
class Data:
    """Clean samples to diffuse, normalised, and the way back to images.

    Latents are sampled anew each time they are seen.
    """

    def __init__(
        self,
        c: DiffusionConfig,
        pack: Pack,
        latents: Latents | None,
        vae: VAE | None,
        device: torch.device,
        room: float = 0.0,
        columns: Sequence[Column] = (),
    ):
        """`room`: bytes of the device that the data leave for a step. `columns`: what the network is told of each
        slice, where that is more than its class."""
        labels, self.columns = labels_of(pack, columns) if columns else None, columns
        self.latents, self.device, self.classes = latents, device, pack.classes
        self.batches: Any
        self.decoder = None if vae is None else vae.decoder.to(device)
        if latents is None:
            self.batches = Batches(pack, seed=c.seed, batch=c.batch, device=device, room=room, labels=labels)
            self.shape = (c.channels, c.resolution, c.resolution)
            mean, std = torch.zeros(c.channels), torch.ones(c.channels)
        else:
            self.batches = LatentBatches(latents, seed=c.seed, device=device, room=room, labels=labels)
            self.shape = tuple(latents.values.shape[2:])
            mean, std = torch.from_numpy(latents.mean), torch.from_numpy(latents.std)
        self.scale = LatentScale(mean, std).to(device)

    def rows(self, position: int, start: int, stop: int, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0, labels) of rows start..stop of a global batch; `noise` (stop - start, ...) picks the sample of the
        posterior."""
        if self.latents is None:
            return self.batches.rows(position, start, stop)
        mean, logvar, labels = self.batches.rows(position, start, stop)
        return self.scale.normalise(posterior_sample(mean, logvar, noise)), labels

    def to_images(self, x0: torch.Tensor, scale: LatentScale, dtype: torch.dtype) -> torch.Tensor:
        """Images (B, C, R, R) in -1 .. 1 of clean samples."""
        if self.decoder is None:
            return x0.clamp(-1, 1)
        with torch.no_grad(), torch.autocast(x0.device.type, dtype, enabled=dtype != torch.float32):
            return torch.cat([self.decoder(scale.restore(part)).float() for part in x0.split(CHUNK)]).clamp(-1, 1)

    @property
    def waited(self) -> float:
        """Seconds that the training has waited for data so far."""
        return getattr(self.batches, "waited", 0.0)

    def close(self) -> None:
        """End the thread that reads ahead."""
        if self.latents is None:
            self.batches.close()


def about_vae(run: RunDir, vae: VAE | None) -> dict | None:
    """What predict.py needs to build the decoder."""
    if vae is None:
        return None
    of_vae = read_weights(copied_vae(run.path))[1]["config"]
    return {k: of_vae[k] for k in loading.VAE_FIELDS}
