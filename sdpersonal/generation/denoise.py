"""Denoise latents with classifier-free guidance, from noise that depends on an image's seed only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..config.scheduler_table import Scheduler
from ..models import Conditioning, SchedulerAdapter, StableDiffusion
from .style_paths import StylePaths

STYLE_GUIDANCE = 3.0  # of a style's prediction against the negative prompt; more of it brings shapes of its photos
_STYLE_EVERY = 2  # predictions, counted from the last, of which one predicts the styles too: they change slowly


@dataclass(frozen=True)
class SamplingConfig:
    """The settings of the denoising.

    rescale: guidance-rescale factor, 0 for none; strength: for img2img, the share of the steps that is run; scheduler:
    None for the model's default; restarts_noise: the scheduler's own noise starts again with the seed's initial noise,
    as it always did with `--fast`, so that its old images can be reproduced to the bit.
    """

    steps: int
    guidance: float
    rescale: float = 0.0
    strength: float = 1.0
    scheduler: Scheduler | None = None
    restarts_noise: bool = False

    @property
    def skipped_steps(self) -> int:
        """The number of steps at the beginning that are skipped."""
        return self.steps - max(1, min(self.steps, int(self.steps * self.strength)))

    @property
    def has_negative(self) -> bool:
        """Whether the negative prompt is predicted: it has no effect with a guidance scale of 1."""
        return self.guidance != 1

    @property
    def num_predictions(self) -> int:
        """The number of UNet predictions: one a step, or as many as the scheduler needs."""
        if self.scheduler is None:
            return self.steps - self.skipped_steps
        return self.scheduler.predictions(self.steps, self.skipped_steps)


@dataclass(frozen=True)
class StepConditioning:
    """The conditioning of a step's batch.

    rows: groups of B prompts each: the negative ones, unless the guidance scale is 1, and those without their styles.
    If the step `predicts_styles`, then one group for each active style, and again for their negative prompts.
    style_scales: the guidance scale of each active style, by its index among all.
    """

    rows: Conditioning
    style_scales: Mapping[int, float] = field(default_factory=dict)
    predicts_styles: bool = False


ConditioningAt = Callable[[float, bool], StepConditioning]


@dataclass(frozen=True)
class InitLatents:
    """The latents of an init image, (1 or B, C, h, w), scaled for the UNet.

    mask: (1, 1, h, w), 1 where they are generated anew; None: everywhere.
    """

    latents: Tensor
    mask: Tensor | None = None


def denoise(
    model: StableDiffusion,
    conditioning_at: ConditioningAt,
    noise: Tensor,
    config: SamplingConfig,
    init: InitLatents | None = None,
    seeds: Sequence[int] = (),
    on_step: Callable[[int], None] = lambda number: None,
    on_prediction: Callable[[Callable[[], Tensor]], None] = lambda predict_x0: None,
    edit_x0: Callable[[Tensor, float], Tensor | None] = lambda x0, progress: None,
    num_subjects: int = 1,
) -> Tensor:
    """Denoise latents (B, C, h, w) from pure noise, or from noised init latents (SDEdit, Meng et al. 2021).

    Args:
        conditioning_at: conditioning_at(progress, holds_styles) returns the conditioning for the progress of the
            sampling, 0 (noise) to 1 (image), without rows of styles if the last ones may be held. It may change the
            LoRA adapters.
        seeds: one per image, for schedulers that add noise in their steps.
        on_step: on_step(i) is called before the i-th prediction, counted from 1.
        on_prediction: on_prediction(predict_x0) is called in each step; predict_x0() returns x_0, (B, C, h, w).
        edit_x0: edit_x0(x_0, progress) returns what replaces the predicted x_0, (B, C, h, w); None to keep it.
        num_subjects: the latents are those of that many subjects of B / num_subjects pictures, subject by subject.
    """
    sampler = SchedulerAdapter(model.make_scheduler(config.scheduler), config.steps, config.skipped_steps, model.device)
    generators = noise_generators(seeds, noise.shape[1:], config.restarts_noise)
    latents = sampler.add_noise(init.latents, noise, 0) if init else sampler.scale_noise(noise)
    styles = StylePaths(model.schedule, num_subjects, init.mask if init else None)
    last, pace = len(sampler.timesteps) - 1, _Pace(model.device)
    for i, t in enumerate(sampler.timesteps):
        pace.wait()
        on_step(i + 1)
        conditioning = conditioning_at(sampler.progress(i), (last - i) % _STYLE_EVERY > 0)
        styles.begin_step(conditioning.style_scales)
        model_input = sampler.scale_model_input(latents, i)
        prediction, styled = predict_with_guidance(model, model_input, t, conditioning, config, styles)
        ts = t.long().expand(len(latents))
        x0 = model.schedule.predict_x0(model_input, prediction, ts)
        if (edited := edit_x0(x0, sampler.progress(i))) is not None:
            x0, prediction = edited, model.schedule.prediction_of(model_input, edited, ts)
        styles.end_step(x0, styled)
        on_prediction(partial(styles.apply, x0))
        latents = sampler.step(prediction, i, latents, generators)
        if init and init.mask is not None:
            original = sampler.add_noise(init.latents, noise, i + 1)
            latents = init.mask * latents + (1 - init.mask) * original
        pace.end_step()
    return styles.apply(latents)


class _Pace:
    """Keeps the CPU at most two steps ahead of a card: a step is launched in less time than it takes, and progress and
    cancelling would otherwise be about steps that are launched, not computed."""

    def __init__(self, device: torch.device):
        self._device = device
        self._ends: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Wait for the end of the step before the last."""
        if len(self._ends) == 2:
            self._ends.popleft().synchronize()

    def end_step(self) -> None:
        if self._device.type == "cuda":
            end = torch.cuda.Event(blocking=True)
            end.record(torch.cuda.current_stream(self._device))
            self._ends.append(end)


def predict_with_guidance(
    model: StableDiffusion,
    model_input: Tensor,
    t: Tensor,
    conditioning: StepConditioning,
    config: SamplingConfig,
    styles: StylePaths,
) -> tuple[Tensor, list[Tensor]]:
    """Predict the images, (B, C, h, w), and x_0 of each style at latents of its own; see `style_guidance`.

    The styles are predicted in the same call of the UNet; none if the conditioning has no rows of them.
    """
    ts = t.long().expand(len(model_input))
    own = styles.input(model_input, ts)
    inputs = styles.styled_inputs(model_input, ts) if conditioning.predicts_styles else []
    count = 1 + config.has_negative
    rows = torch.cat([own] * count + inputs * count)
    predictions = model.replayer.predict(rows, t.expand(len(rows)), conditioning.rows).split(len(model_input))
    if not config.has_negative:
        guided, *styled = predictions
    else:
        negative, positive, *rest = predictions
        guided = _guide(negative, positive, config.guidance, config.rescale)
        pairs = zip(rest[: len(inputs)], rest[len(inputs) :], strict=True)
        styled = [_guide(opposite, prediction, STYLE_GUIDANCE, config.rescale) for prediction, opposite in pairs]
    x0s = [model.schedule.predict_x0(x, p, ts) for x, p in zip(inputs, styled, strict=True)]
    return styles.unshifted(guided, ts), x0s


def _guide(negative: Tensor, positive: Tensor, scale: float, rescale: float) -> Tensor:
    """Return classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6), rescaled by a share."""
    guided = negative + scale * (positive - negative)
    return _rescale_guidance(guided, positive, rescale) if rescale else guided


def _rescale_guidance(guided: Tensor, unguided: Tensor, rescale: float) -> Tensor:
    """Rescale to the standard deviation without guidance, by a share (Lin et al. 2023, arXiv 2305.08891, eq. 15-16)."""
    image_dims = (1, 2, 3)
    scale = unguided.std(dim=image_dims, keepdim=True) / guided.std(dim=image_dims, keepdim=True)
    return guided * (rescale * scale + (1 - rescale))


def noise_generators(seeds: Sequence[int], shape: Sequence[int], restarts: bool) -> list[torch.Generator]:
    """Create one generator per image from its seed only; on the CPU, so that results do not depend on the device.

    It continues after the image's initial noise, as in diffusers' pipelines, unless it `restarts`.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    for generator in () if restarts else generators:
        torch.randn(tuple(shape), generator=generator)
    return generators


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
