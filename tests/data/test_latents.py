"""The cache of latents: what is in it, when it is built again, batches from it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches import to_float
from data.latents import LatentBatches, build_latents, ensure_latents, latents_path, open_latents
from data.pack import ensure_pack
from data.walk import DataError


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return ensure_pack("phantom:41", resolution=32, cache_dir=tmp_path_factory.mktemp("packs"), log=lambda *_: None)


class Encoder:
    """A known function: means are average-pooled slices, log-variances a constant per channel."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        small = torch.nn.functional.avg_pool2d(images, 8)
        return torch.cat([small, 3 * small + 1], 1), torch.full((len(images), 2, 4, 4), -2.0) * torch.tensor(
            [1.0, 2.0]
        )[:, None, None]


def test_it_holds_every_slice_in_order_and_the_spread_of_samples(pack, tmp_path):
    encode, said = Encoder(), []
    latents = ensure_latents(pack, encode, "a" * 64, device="cpu", cache_dir=tmp_path, log=said.append)
    assert encode.calls == 2 and latents.values.shape == (41, 2, 2, 4, 4)  # 41 slices in batches of 32
    mean, logvar = Encoder()(to_float(torch.from_numpy(np.array(pack.images))))
    assert np.allclose(latents.values[:, 0], mean.numpy(), atol=2e-3)
    assert np.allclose(latents.values[:, 1], logvar.numpy(), atol=2e-3)
    z = mean + (logvar / 2).exp() * torch.randn(200, *mean.shape, generator=torch.Generator().manual_seed(0))
    assert np.allclose(latents.mean, z.mean((0, 1, 3, 4)), atol=0.01)
    assert np.allclose(latents.std, z.permute(2, 0, 1, 3, 4).flatten(1).std(1), rtol=0.01)
    assert np.array_equal(latents.labels, pack.labels)
    # However it is cut: parts of 8 end with a single slice.
    parts = build_latents(
        pack, Encoder(), "b" * 64, latents_path(pack, "b" * 64, tmp_path), device="cpu", batch=8, log=said.append
    )
    assert np.array_equal(parts.values, latents.values) and np.allclose(parts.std, latents.std)


def test_it_is_encoded_once_and_again_when_weights_or_slices_change(pack, tmp_path):
    encode = Encoder()
    ensure_latents(pack, encode, "a" * 64, device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    ensure_latents(pack, encode, "a" * 64, device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    assert encode.calls == 2
    ensure_latents(pack, encode, "b" * 64, device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    assert encode.calls == 4
    other = ensure_pack("phantom:40", resolution=32, cache_dir=tmp_path, log=lambda *_: None)
    ensure_latents(other, encode, "a" * 64, device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    assert encode.calls == 6
    assert not list(tmp_path.glob(".latents*"))


@pytest.mark.parametrize("damage", ["no sidecar", "torn", "pickle", "other shape"])
def test_a_damaged_cache_is_built_again(pack, tmp_path, damage):
    quiet = dict(device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    good = ensure_latents(pack, Encoder(), "a" * 64, **quiet)
    before, path = np.array(good.values), latents_path(pack, "a" * 64, tmp_path)
    if damage == "no sidecar":
        path.with_suffix(".json").unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        about = json.loads(path.with_suffix(".json").read_text())
        np.save(path, np.zeros((41, 2, 2, 4, 3), np.float16))
        path.with_suffix(".json").write_text(json.dumps(about))
    assert open_latents(path, pack, "a" * 64) is None
    again = ensure_latents(pack, Encoder(), "a" * 64, **quiet)
    assert np.array_equal(again.values, before)


CHANGES = {
    "version": {"version": 0},
    "encoder": {"encoder": "e" * 64},
    "pack": {"pack": "f" * 64},
    "shape": {"shape": [41, 2, 2, 4]},
    "one mean": {"mean": [0.0]},
    "one deviation": {"std": [1.0]},
    "no deviation": {"std": [1.0, 0.0]},
    "no number": {"mean": [0.0, float("nan")]},
    "endless": {"std": [1.0, float("inf")]},
    "text": {"mean": "x"},
    "lists": {"std": [[1.0], [1.0, 2.0]]},
    "three channels": {"mean": [0.0] * 3, "std": [1.0] * 3},
    "hash": {"sha256": "0" * 64},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_sidecar_that_does_not_fit_is_not_believed(pack, tmp_path, name):
    """Each for one entry alone. The hash is compared where all is read."""
    latents = ensure_latents(pack, Encoder(), "a" * 64, device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    path, sidecar = Path(latents.path), Path(latents.path).with_suffix(".json")
    assert open_latents(path, pack, "a" * 64) is not None
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | CHANGES[name]))
    assert open_latents(path, pack, "a" * 64) is None
    assert (open_latents(path, pack, "a" * 64, verify=False) is not None) == (name == "hash")


def test_an_array_that_does_not_fit_is_not_believed(pack, tmp_path):
    latents = ensure_latents(pack, Encoder(), "a" * 64, device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    path, good = Path(latents.path), np.array(latents.values)
    for bad in (good.astype(np.float32), good[:40], good.reshape(41, 4, 4, 4)):
        np.save(path, bad)
        about = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps(about | {"shape": list(bad.shape)}))
        assert open_latents(path, pack, "a" * 64, verify=False) is None
    np.save(path, good)
    path.with_suffix(".json").write_text(json.dumps(about | {"shape": list(good.shape)}))
    assert open_latents(path, pack, "a" * 64, verify=False) is not None


def test_what_half_precision_cannot_hold_is_refused_and_a_dead_channel_has_a_scale(pack, tmp_path):
    def encode(images, factor=1.0, logvar=-30.0):
        mean = torch.zeros(len(images), 2, 4, 4)
        mean[:, 0] = factor
        return mean, torch.full_like(mean, logvar)

    quiet = dict(device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    with pytest.raises(DataError, match="too large"):
        ensure_latents(pack, lambda images: encode(images, -7e4), "c" * 64, **quiet)
    with pytest.raises(DataError, match="not finite"):
        ensure_latents(pack, lambda images: encode(images, 1.0, float("inf")), "c" * 64, **quiet)
    assert not list(tmp_path.glob("*latents*"))
    latents = ensure_latents(pack, encode, "c" * 64, **quiet)
    assert np.allclose(latents.mean, [1, 0]) and np.allclose(latents.std, 1e-4)


def test_a_sidecar_never_vouches_for_another_array(pack, tmp_path, monkeypatch):
    """A cache that is built again, by a process that dies between array and sidecar: the old sidecar is gone by
    then."""
    quiet = dict(device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    path = Path(ensure_latents(pack, Encoder(), "a" * 64, **quiet).path)
    path.write_bytes(path.read_bytes()[:500])
    replace = os.replace

    def dies(source, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        ensure_latents(pack, Encoder(), "a" * 64, **quiet)
    assert path.exists() and not path.with_suffix(".json").exists()
    assert open_latents(path, pack, "a" * 64, verify=False) is None


def test_the_name_tells_encoder_slices_and_size(pack, tmp_path):
    other = ensure_pack("phantom:40", resolution=32, cache_dir=tmp_path, log=lambda *_: None)
    names = {latents_path(p, sha, tmp_path).name for p in (pack, other) for sha in ("a" * 64, "b" * 64)}
    assert len(names) == 4 and all(name.startswith("latents-32px-") for name in names)


def test_latents_that_are_not_finite_are_refused(pack, tmp_path):
    def encode(images):
        mean, logvar = Encoder()(images)
        return mean * float("nan"), logvar

    with pytest.raises(DataError, match="not finite"):
        ensure_latents(pack, encode, "c" * 64, device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    assert not list(tmp_path.glob("*latents*"))


def test_what_killed_processes_left_goes_and_a_stop_leaves_nothing(pack, tmp_path):
    path = latents_path(pack, "d" * 64, tmp_path)
    abandoned, fresh = (path.with_name(f".{path.name}.tmp.elsewhere.{n}.0") for n in (1, 2))
    for file, age in ((abandoned, 30 * 86400), (fresh, 0)):
        file.write_bytes(b"x")
        os.utime(file, (time.time() - age,) * 2)
    calls = []

    def poll():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_latents(pack, Encoder(), "d" * 64, device="cpu", cache_dir=tmp_path, poll=poll, log=lambda *_: None)
    assert sorted(tmp_path.iterdir()) == [fresh] and len(calls) == 2


def test_batches_come_in_the_order_of_the_slices_batches(pack, tmp_path):
    from data.batches import Batches

    latents = ensure_latents(pack, Encoder(), "a" * 64, device="cpu", cache_dir=tmp_path, log=lambda *_: None)
    of_latents, of_slices = LatentBatches(latents, seed=3, device="cpu"), Batches(pack, seed=3, batch=8, device="cpu")
    for nimg in (0, 8, 40, 4000):
        mean, logvar, labels = of_latents.rows(nimg, 2, 6)
        images, expected = of_slices.rows(nimg, 2, 6)
        assert torch.equal(labels, expected) and mean.dtype == torch.float32
        assert torch.allclose(mean, Encoder()(images)[0], atol=2e-3) and logvar.shape == mean.shape
