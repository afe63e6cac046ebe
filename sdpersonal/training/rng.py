"""Compute random values as a function of the seed, the purpose and the sample, never of what ran before.

So a resumed run needs no generator state, a preview cannot disturb training, and sample i is the same whether one
process computes it or the second of two.
"""

from __future__ import annotations

import hashlib

import torch


def generator_for(purpose: str, seed: int, index: int = 0) -> torch.Generator:
    """Return a CPU generator of its own for this purpose, seed and index."""
    key = hashlib.sha256(f"{purpose}:{seed}:{index}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(key[:8], "big") >> 1)


def photo_index(sample: int, photos: int, seed: int) -> int:
    """Return the photo of a sample: every epoch has a new order, with each photo once."""
    epoch, position = divmod(sample, photos)
    return int(torch.randperm(photos, generator=generator_for("order", seed, epoch))[position])
