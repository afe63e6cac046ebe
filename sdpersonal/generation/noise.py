"""Where a picture begins: noise that its seed alone decides."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_from_seed(seed: int, shape: tuple[int, int, int]) -> Tensor:
    """(C, h, w). Drawn on the CPU, one generator a picture: a seed means the same picture on any device and in any
    batch.

    seed: 0 to 2**64 - 1, as ComfyUI's, which draws its noise in the same way. torch gives its Mersenne Twister the
    lower 32 bits only (`mt19937::init_with_uint32`), so seeds a multiple of 2**32 apart begin from the same noise.
    """
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """On the arc from one noise to another (slerp; Shoemake 1985): as long as noise is, which a mean would not be."""
    cosine = torch.dot(one.flatten(), other.flatten()) / (one.norm() * other.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return one + share * (other - one)
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)
