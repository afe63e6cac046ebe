"""Compute the training objective in pure functions: all random values are arguments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..models import Conditioning, NoiseSchedule, StableDiffusion
from ..models.text_encoder import Vectors
from .loss_inputs import LossInputs


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return the context in which a method's predictions are computed; see `Method.autocast_dtype`."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def batch_loss(base: StableDiffusion, vectors: Vectors, inputs: LossInputs, snr_gamma: float | None) -> Tensor:
    """Compute the loss of a batch, per sample: (B,). vectors: the subject's, for each text encoder."""
    condition = encode_captions(base, vectors, inputs)
    return diffusion_loss(
        lambda noisy, t: base.predict(noisy, t, condition),
        base.schedule,
        inputs.latents,
        inputs.noise,
        inputs.t,
        snr_gamma,
    )


def encode_captions(base: StableDiffusion, vectors: Vectors, inputs: LossInputs) -> Conditioning:
    """Return the conditioning of each sample."""
    return base.with_time_ids(base.encode_tokens(inputs.tokens, vectors)[inputs.caption], inputs.time_ids)


def diffusion_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    latents: Tensor,
    noise: Tensor,
    t: Tensor,
    snr_gamma: float | None = None,
) -> Tensor:
    """Compute the mean squared error of the predicted noise or velocity, per sample: (B, C, h, w) -> (B,).

    Ho et al. 2020, eq. 14 (Salimans and Ho 2022 for the velocity), weighted by min-SNR where a gamma is given.
    latents, noise: fp32 (B, C, h, w); t: (B,).
    """
    noisy = schedule.add_noise(latents, noise, t)
    error = predict(noisy, t) - schedule.target(latents, noise, t)
    loss = error.pow(2).flatten(1).mean(1)
    return loss if snr_gamma is None else loss * min_snr(schedule, t, snr_gamma)


def min_snr(schedule: NoiseSchedule, t: Tensor, gamma: float) -> Tensor:
    """Compute min-SNR weights, (B,) (Hang et al. 2023, arXiv 2303.09556, section 3.4): min(SNR, gamma) / SNR for noise
    prediction, over SNR + 1 for velocity prediction.

    With zero terminal SNR the last timestep's weight is 0: there the velocity is the image itself, about which pure
    noise says nothing.
    """
    abar = schedule.alphas_cumprod[t]
    snr = abar / (1 - abar)
    scale = snr if schedule.prediction_type == "epsilon" else snr + 1
    return snr.clamp(max=gamma) / scale
