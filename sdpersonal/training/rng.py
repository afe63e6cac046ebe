"""Chance as a function: every draw depends on the seed, what it is for, and which sample it is for; never on what ran
before.

So a resumed run needs no generator's state, a preview cannot disturb training, and sample i is the same whether one
process draws it or the second of two.
"""

from __future__ import annotations

import hashlib

import torch


def generator_for(purpose: str, seed: int, index: int = 0) -> torch.Generator:
    """A CPU generator of its own for this purpose, seed and index."""
    key = hashlib.sha256(f"{purpose}:{seed}:{index}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(key[:8], "big") >> 1)


def photo_index(sample: int, photos: int, seed: int) -> int:
    """Which photo the sample is of: every epoch a new order, each photo once in it."""
    epoch, place = divmod(sample, photos)
    return int(torch.randperm(photos, generator=generator_for("order", seed, epoch))[place])
