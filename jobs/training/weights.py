"""weights.safetensors: all that predict.py needs of a model, without pickle.

One metadata key, `config`, sorted JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from data.files import SMALL, atomic_write, check_regular, open_regular, parse_json, words
from jobs.run.rundir import RunDir

FORMAT = 1
MAX_WEIGHTS = 4 << 30  # bytes of a file at most


class WeightsError(Exception):
    """A weights file that cannot be used; the text is one line that names the fix. Exit code 78."""

    exit_code = 78


def write_weights(path: Path, states: dict[str, dict[str, torch.Tensor]], about: dict) -> None:
    """Write `<name>.<parameter or buffer>` of every state dict; `about` (JSON-able) says what they are.

    The bytes are a function of the contents alone: two runs with equal weights give equal files.
    """
    tensors = {}
    for name, state in states.items():
        for key, value in state.items():
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous()
    tensors = dict(sorted(tensors.items()))
    text = json.dumps({"format": FORMAT, "sha256": digest_of(tensors), **about}, sort_keys=True)
    atomic_write(Path(path), save(tensors, metadata={"config": text}))


def on_host(weights: Mapping[str, torch.nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    """Copies of the modules' parameters and buffers, which the next steps leave as they are."""
    return {
        name: {k: v.detach().to("cpu", copy=True) for k, v in module.state_dict().items()}
        for name, module in weights.items()
    }


def replace_weights(run: RunDir, weights: dict, about: dict, healthy: bool) -> None:
    """Write weights.safetensors; while the run is not healthy, what was there before stays as
    weights-healthy.safetensors."""
    aside = run.weights.with_name("weights-healthy.safetensors")
    if healthy:
        aside.unlink(missing_ok=True)
    elif run.weights.exists() and not aside.exists():
        atomic_write(aside, run.weights.read_bytes())  # whole or not there: it is made only once
    write_weights(run.weights, weights, about)


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, by name: a flipped bit in the tensors would else go unnoticed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors (on the CPU) and what `write_weights` was told of them."""
    path = Path(path)
    check_header(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            about = parse_json((file.metadata() or {}).get("config", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise WeightsError(f"{path}: no `config` in its metadata; only weights written by this toolkit can be used")
    if about.get("format") != FORMAT:
        raise WeightsError(
            f"{path}: format {about.get('format')!r}, this version reads {FORMAT}; use the matching version"
        )
    if "sha256" in about and about["sha256"] != digest_of(tensors):
        raise WeightsError(f"{path}: its tensors do not match their checksum; copy it again from the run")
    return tensors, about


def check_header(path: Path) -> None:
    """WeightsError unless the file begins as weights do and is as long as its header says; no tensor is read."""
    try:
        with open_regular(path) as file:
            info = os.fstat(file.fileno())
            check_regular(info, path, MAX_WEIGHTS)
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= SMALL:
                raise ValueError("its header is of no plausible length")
            header = parse_json(file.read(length))
            parts = [part for name, part in header.items() if name != "__metadata__"]
            if 8 + length + max((part["data_offsets"][1] for part in parts), default=0) != info.st_size:
                raise ValueError("its length is not what its header says")
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weights file; a run writes it at its first checkpoint") from None
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> WeightsError:
    why = words(error) if isinstance(error, (OSError, ValueError, SafetensorError)) else "its header is malformed"
    return WeightsError(f"{path}: not a readable weights file ({why}); copy it again from the run")
