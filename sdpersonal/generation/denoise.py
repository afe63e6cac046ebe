"""Denoise latents with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config.scheduler_names import Scheduler
from ..models import Conditioning, StableDiffusion, draws_noise, step_of, step_options


@dataclass(frozen=True)
class SamplingConfig:
    """The settings of the denoising.

    rescale: guidance-rescale factor, 0 for none; change: the img2img strength, the share of the schedule that is run;
    scheduler: None for the base's default; restarts_noise: the scheduler's own noise starts again with the seed's
    initial noise, as it always did with `--fast`, so that its old images can be reproduced to the bit.
    """

    steps: int
    guidance: float
    rescale: float = 0.0
    strength: float = 1.0
    scheduler: Scheduler | None = None
    restarts_noise: bool = False

    @property
    def skipped(self) -> int:
        """The number of steps at the beginning that are skipped."""
        return self.steps - max(1, min(self.steps, int(self.steps * self.strength)))

    @property
    def predictions(self) -> int:
        """The number of UNet predictions: one a step, or as many as the scheduler needs."""
        if self.scheduler is None:
            return self.steps - self.skipped
        return self.scheduler.predictions(self.steps, self.skipped)


@dataclass(frozen=True)
class InitLatents:
    """Initial latents (1 or B, C, h, w), scaled for the UNet. mask: (1, 1, h, w), 1 where they may change."""

    latents: Tensor
    mask: Tensor | None = None


def sampling_progress(step: int, steps: int) -> float:
    """Return the progress of the sampling in the middle of a step (from 0): 0 is noise, 1 the image."""
    return (step + 0.5) / steps


def denoise(
    base: StableDiffusion,
    condition: Conditioning | Callable[[float], Conditioning],
    noise: Tensor,
    sampling: SamplingConfig,
    on_step: Callable[[int], None] = lambda step: None,
    init: InitLatents | None = None,
    seeds: tuple[int, ...] = (),
    on_prediction: Callable[[Callable[[], Tensor]], None] | None = None,
) -> Tensor:
    """Denoise with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    Args:
        condition: 2B contexts, the negative prompts' first; or a function that returns them for the progress of the
            sampling, 0 (noise) to 1 (image), and may change the LoRA adapters between steps.
        noise: (B, C, h, w).
        advance: advance(i) is called before the i-th prediction, counted from 1.
        start: latents to begin from, noised (Meng et al. 2022, SDEdit, arXiv 2108.01073); they stay where the mask is
            0.
        seeds: one per image, for schedulers that add noise in their steps.
        look: look(guess) is called in each step; guess() returns the predicted x_0, (B, C, h, w).

    Returns:
        The latents, (B, C, h, w).
    """
    sampler = base.make_scheduler(sampling.scheduler)
    options: dict[str, Any] = {}
    if sampling.scheduler and draws_noise(sampler):
        options = {"generator": _generators(seeds, noise.shape[1:], sampling.restarts_noise)}
    sampler.set_timesteps(sampling.steps, device=base.device)
    first = sampling.skipped * sampler.order  # Heun and DPM2 have two timesteps per step
    timesteps = sampler.timesteps[first:]
    if hasattr(sampler, "set_begin_index"):  # DDIM finds its index by the timestep
        sampler.set_begin_index(first)  # else the index is looked up, and wrong if two timesteps round to the same
    noise = noise.float()
    if init is None:
        latents = noise * sampler.init_noise_sigma
    else:
        latents = sampler.add_noise(init.latents.expand_as(noise), noise, timesteps[:1])
    for i, t in enumerate(timesteps):
        on_step(i + 1)
        step = step_of(sampler, first + i, sampling.steps)
        conditioning = condition(sampling_progress(step, sampling.steps)) if callable(condition) else condition
        inputs = sampler.scale_model_input(latents, t)
        predicted = _predict_with_guidance(base, conditioning, inputs, t, sampling)
        if on_prediction:
            on_prediction(partial(base.schedule.predict_x0, inputs, predicted, t.long().expand(len(latents))))
        latents = sampler.step(predicted, t, latents, **options, **step_options(sampler, i)).prev_sample
        if init is not None and init.mask is not None:
            original = init.latents.expand_as(noise)
            if i + 1 < len(timesteps):
                original = sampler.add_noise(original, noise, timesteps[i + 1 : i + 2])
            latents = init.mask * latents + (1 - init.mask) * original
    return latents


def _generators(seeds: tuple[int, ...], shape: tuple[int, ...], restarts: bool) -> list[torch.Generator]:
    """Create one generator per image from its seed only; on the CPU, so that results do not depend on the device.

    It continues after the image's initial noise, as in diffusers' pipelines, unless it `restarts`.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    for generator in () if restarts else generators:
        torch.randn(shape, generator=generator)
    return generators


def _predict_with_guidance(
    base: StableDiffusion, condition: Conditioning, inputs: Tensor, t: Tensor, sampling: SamplingConfig
) -> Tensor:
    count = len(inputs)
    if sampling.guidance == 1:  # the negative prompt has no effect: half the work
        return base.predict(inputs, t.expand(count), condition[count:])
    uncond, cond = base.predict(torch.cat([inputs, inputs]), t.expand(2 * count), condition).chunk(2)
    guided = uncond + sampling.guidance * (cond - uncond)
    return _rescale_guidance(guided, cond, sampling.rescale) if sampling.rescale else guided


def _rescale_guidance(guided: Tensor, with_prompt: Tensor, rescale: float) -> Tensor:
    """Rescale to the standard deviation without guidance, by a share (Lin et al. 2023, arXiv 2305.08891, eq. 15-16)."""
    image_dims = (1, 2, 3)
    scale = with_prompt.std(dim=image_dims, keepdim=True) / guided.std(dim=image_dims, keepdim=True)
    return guided * (rescale * scale + (1 - rescale))
