"""From noise to latents, with classifier-free guidance."""

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
    """How to denoise. rescale: 0 leaves guidance's contrast; change: the share of the noise levels gone through;
    scheduler: None for the base's default; restarts_noise: what the scheduler draws begins with the seed's first noise,
    as `--fast` always did: its old images must be drawn again to the bit."""

    steps: int
    guidance: float
    rescale: float = 0.0
    change: float = 1.0
    scheduler: Scheduler | None = None
    restarts_noise: bool = False

    @property
    def skipped(self) -> int:
        """Steps at the beginning that are not computed."""
        return self.steps - max(1, min(self.steps, int(self.steps * self.change)))

    @property
    def predictions(self) -> int:
        """How often the UNet is asked: once a step, or as often as the scheduler needs."""
        if self.scheduler is None:
            return self.steps - self.skipped
        return self.scheduler.predictions(self.steps, self.skipped)


@dataclass(frozen=True)
class InitLatents:
    """Latents to begin from, (1 or B, C, h, w), as the UNet sees them. mask: (1, 1, h, w), 1 where they may change."""

    latents: Tensor
    mask: Tensor | None = None


def sampling_progress(step: int, steps: int) -> float:
    """The middle of a step, counted from 0, in the sampling: 0 is noise, 1 the picture."""
    return (step + 0.5) / steps


def denoise(
    base: StableDiffusion,
    condition: Conditioning | Callable[[float], Conditioning],
    noise: Tensor,
    sampling: SamplingConfig,
    advance: Callable[[int], None] = lambda step: None,
    start: InitLatents | None = None,
    seeds: tuple[int, ...] = (),
    look: Callable[[Callable[[], Tensor]], None] | None = None,
) -> Tensor:
    """Noise (B, C, h, w) to latents, with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    condition: 2B rows, the negative prompt's first, or what gives them for a moment, 0 (noise) to 1 (picture), and may
    change the slots between steps. advance(i) is called before the i-th prediction, counted from 1. start: begin from
    it, noised (Meng et al. 2022, SDEdit, arXiv 2108.01073), and keep it where its mask is 0. seeds: one an image, for
    schedulers that draw noise on the way. look(guess) is called in each step; guess() is what the
    picture would be by it, (B, C, h, w).
    """
    sampler = base.sampler(sampling.scheduler)
    options: dict[str, Any] = {}
    if sampling.scheduler and draws_noise(sampler):
        options = {"generator": _generators(seeds, noise.shape[1:], sampling.restarts_noise)}
    sampler.set_timesteps(sampling.steps, device=base.device)
    first = sampling.skipped * sampler.order  # Heun and DPM2 have two timesteps a step
    times = sampler.timesteps[first:]
    if hasattr(sampler, "set_begin_index"):  # DDIM looks its place up by the time
        sampler.set_begin_index(first)  # else the place is looked up too, and wrong where two timesteps round to one
    noise = noise.float()
    if start is None:
        latents = noise * sampler.init_noise_sigma
    else:
        latents = sampler.add_noise(start.latents.expand_as(noise), noise, times[:1])
    for i, t in enumerate(times):
        advance(i + 1)
        step = step_of(sampler, first + i, sampling.steps)
        now = condition(sampling_progress(step, sampling.steps)) if callable(condition) else condition
        inputs = sampler.scale_model_input(latents, t)
        predicted = _predict_with_guidance(base, now, inputs, t, sampling)
        if look:
            look(partial(base.schedule.predict_x0, inputs, predicted, t.long().expand(len(latents))))
        latents = sampler.step(predicted, t, latents, **options, **step_options(sampler, i)).prev_sample
        if start is not None and start.mask is not None:
            kept = start.latents.expand_as(noise)
            if i + 1 < len(times):
                kept = sampler.add_noise(kept, noise, times[i + 1 : i + 2])
            latents = start.mask * latents + (1 - start.mask) * kept
    return latents


def _generators(seeds: tuple[int, ...], shape: tuple[int, ...], restarts: bool) -> list[torch.Generator]:
    """One for each image, which its seed alone decides; on the CPU, so that the device does not matter.

    Each goes on behind the noise that the image begins from, as in diffusers' pipelines, unless it `restarts`.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    for generator in () if restarts else generators:
        torch.randn(shape, generator=generator)
    return generators


def _predict_with_guidance(
    base: StableDiffusion, condition: Conditioning, inputs: Tensor, t: Tensor, sampling: SamplingConfig
) -> Tensor:
    count = len(inputs)
    if sampling.guidance == 1:  # the negative prompt has no say: half the work
        return base.predict(inputs, t.expand(count), condition[count:])
    without, with_prompt = base.predict(torch.cat([inputs, inputs]), t.expand(2 * count), condition).chunk(2)
    guided = without + sampling.guidance * (with_prompt - without)
    return _rescale_guidance(guided, with_prompt, sampling.rescale) if sampling.rescale else guided


def _rescale_guidance(guided: Tensor, with_prompt: Tensor, share: float) -> Tensor:
    """Contrast as without guidance, by a share (Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16)."""
    of_picture = (1, 2, 3)
    scale = with_prompt.std(dim=of_picture, keepdim=True) / guided.std(dim=of_picture, keepdim=True)
    return guided * (share * scale + (1 - share))
