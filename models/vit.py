"""A vision transformer that takes the weights of DINO and DINOv2, for features to measure with.

It is never trained here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 64  # of all their networks


class Block(nn.Module):
    """Pre-norm attention and MLP (Dosovitskiy 2021), with the layer scale of DINOv2 (Touvron 2021) or without."""

    ls1: nn.ParameterDict | None
    ls2: nn.ParameterDict | None

    def __init__(self, dim: int, hidden: int, layer_scale: bool):
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})
        for name in ("ls1", "ls2"):
            scale = nn.ParameterDict({"gamma": nn.Parameter(torch.ones(dim))}) if layer_scale else None
            setattr(self, name, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, dim) -> the same shape."""
        b, n, dim = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).view(b, n, 3, self.heads, HEAD_DIM).permute(2, 0, 3, 1, 4)
        mixed = self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, dim))
        x = x + (mixed if self.ls1 is None else mixed * self.ls1["gamma"])
        mixed = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + (mixed if self.ls2 is None else mixed * self.ls2["gamma"])


class VisionTransformer(nn.Module):
    """Images (B, 3, S, S), normalised -> class tokens (B, dim). Names of the tensors are those of DINO's files."""

    def __init__(
        self, dim: int, depth: int, hidden: int, patch: int, places: int, *, layer_scale: bool, registers: int
    ):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + places, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.blocks = nn.ModuleList(Block(dim, hidden, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def positions(self, side: int) -> Tensor:
        """(1, side * side, dim): of the patches, resized from the grid of its training as its authors do it.

        DINO and DINOv2: by a factor with a tenth of a patch added, without antialiasing; with registers by the size.
        """
        known = math.isqrt(self.pos_embed.shape[1] - 1)
        grid = self.pos_embed[:, 1:].unflatten(1, (known, known)).permute(0, 3, 1, 2)
        if side != known:
            if self.register_tokens is None:
                factor = (side + 0.1) / known
                grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic", align_corners=False)
            else:
                grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
        return grid.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, R, R), R a multiple of the patch -> features (B, dim) of the class token."""
        patches = self.patch_embed["proj"](images)
        x = patches.flatten(2).transpose(1, 2) + self.positions(patches.shape[-1])
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        registers = [] if self.register_tokens is None else [self.register_tokens.expand(len(x), -1, -1)]
        x = torch.cat([first, *registers, x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def is_transformer(state: dict[str, Tensor]) -> bool:
    """Whether a state dict is of such a vision transformer."""
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "pos_embed"} <= set(state)


def build_transformer(state: dict[str, Tensor]) -> tuple[VisionTransformer, str]:
    """(network with these weights, its name) of a state dict of DINO or DINOv2.

    RuntimeError where something does not fit.
    """
    state = {k: v for k, v in state.items() if not k.startswith(("head", "mask_token"))}
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    depth = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    scaled, registers = "blocks.0.ls1.gamma" in state, state.get("register_tokens")
    network = VisionTransformer(
        dim,
        depth,
        len(state["blocks.0.mlp.fc1.weight"]),
        patch,
        state["pos_embed"].shape[1] - 1,
        layer_scale=scaled,
        registers=0 if registers is None else registers.shape[1],
    )
    network.load_state_dict(state)
    size = {192: "Ti", 384: "S", 768: "B", 1024: "L"}.get(dim, str(dim))
    return network, f"{'DINOv2' if scaled else 'DINO'} ViT-{size}/{patch}"
