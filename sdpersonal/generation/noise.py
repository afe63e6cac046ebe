"""The initial noise of an image, which depends on its seed only."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_from_seed(seed: int, shape: tuple[int, int, int]) -> Tensor:
    """Sample the initial noise (C, h, w) of one image.

    It is sampled on the CPU with one generator per image, so a seed gives the same image on any device and in any
    batch.

    seed: 0 to 2**64 - 1, as in ComfyUI, which samples its noise in the same way. torch gives its Mersenne Twister only
    the lower 32 bits (`mt19937::init_with_uint32`), so seeds a multiple of 2**32 apart give the same noise.
    """
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate two noises spherically (slerp; Shoemake 1985), which keeps their norm; a linear mean would not."""
    cosine = torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return a + t * (b - a)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
