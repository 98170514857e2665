"""What a GPU can do, by the name that Slurm has for it: compute capability and memory. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """name: as people call it. capability: (major, minor). gb: memory of its smallest variant, in 1e9 bytes."""

    name: str
    capability: tuple[int, int]
    gb: float


# Pattern of a name -> compute capability (developer.nvidia.com/cuda-gpus), memory. Names of several cards are left out.
CARDS = (
    (r"k80", (3, 7), 12),
    (r"p100", (6, 0), 12),
    (r"p40", (6, 1), 24),
    (r"p4", (6, 1), 8),
    (r"(gtx)?1080(ti)?", (6, 1), 8),
    (r"v100s?", (7, 0), 16),
    (r"titan_?v", (7, 0), 12),
    (r"t4", (7, 5), 16),
    (r"(rtx)?2080(ti)?", (7, 5), 8),
    (r"a100x?", (8, 0), 40),
    (r"a30", (8, 0), 24),
    (r"a10g?", (8, 6), 24),
    (r"a16", (8, 6), 16),
    (r"a2", (8, 6), 16),
    (r"a40", (8, 6), 48),
    (r"(rtx)?a4000", (8, 6), 16),
    (r"(rtx)?a5000", (8, 6), 24),
    (r"(rtx)?a6000", (8, 6), 48),
    (r"(rtx)?3080(ti)?", (8, 6), 10),
    (r"(rtx)?3090(ti)?", (8, 6), 24),
    (r"l4", (8, 9), 24),
    (r"l40s?", (8, 9), 48),
    (r"(rtx)?4080", (8, 9), 16),
    (r"(rtx)?4090", (8, 9), 24),
    (r"h100", (9, 0), 80),
    (r"g?h200", (9, 0), 96),
    (r"g?b200", (10, 0), 180),
    (r"(rtx)?5090", (12, 0), 32),
)


def card_of(gres: str) -> Card | None:
    """The card that a gres names (gpu:a100:2, gpu:nvidia_a100_80gb_pcie, gpu:a100_1g.5gb), or torch; None where nothing
    is known of it. A slice (MIG) has its own memory."""
    text = gres.lower()
    for pattern, capability, gb in CARDS:
        if found := re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", text):
            size = re.search(r"\d+g\.(\d+)gb", text) or re.search(r"(?<!\d)(\d+)\s?gb", text)
            return Card(found[0].upper(), capability, float(size[1]) if size else gb)
    return None
