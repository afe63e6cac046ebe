"""What is learned from, as a pure function: all chance comes in as arguments."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..bases import Schedule


def diffusion_loss(
    predict: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, latents: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise or velocity, per sample: (B, C, h, w) -> (B,).

    Ho et al. 2020, eq. 14 (Salimans and Ho 2022 for the velocity). latents, noise: fp32 (B, C, h, w); t: (B,).
    """
    noisy = schedule.mix(latents, noise, t)
    error = predict(noisy, t) - schedule.target(latents, noise, t)
    return error.pow(2).flatten(1).mean(1)
