"""Build diffusers schedulers from the model's own configuration and the scheduler that the user requested."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LMSDiscreteScheduler, SchedulerMixin

from ..config.scheduler_names import Scheduler
from ..errors import FieldError


def make_scheduler(config: Mapping[str, Any], scheduler: Scheduler | None = None) -> SchedulerMixin:
    """Build a fresh scheduler with no memory of other images.

    Args:
        config: of the scheduler that the base came with.
        scheduler: None for the default, DPM++ 2M Karras (Lu et al. 2022, arXiv 2211.01095), which converges in 25
            steps. It divides by the last step's signal, which is 0 with zero terminal SNR; the default for such a base
            is DDIM with its own configuration.
    """
    if scheduler is not None:
        kind = getattr(diffusers, f"{scheduler.diffusers}Scheduler")
        options = dict(scheduler.options)
        if config.get("rescale_betas_zero_snr"):
            options |= _zero_snr_options(kind, config, options)
        return kind.from_config(config, **options)
    if config.get("rescale_betas_zero_snr"):
        return DDIMScheduler.from_config(config)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", use_karras_sigmas=True)


def check_scheduler(config: Mapping[str, Any], scheduler: Scheduler | None, steps: int) -> None:
    """Raise FieldError for a scheduler that cannot generate with a base of this configuration.

    With zero terminal SNR the first sigma is infinite, 4096 in diffusers. Beta spaces the sigmas evenly at that end,
    so that nearly every step is lost in noise. Heun takes the mean of the slopes at both ends of its first step, whose
    length is that sigma, which is only near where the second sigma is large too, as Karras and Exponential have it. In
    two steps an ancestral class rounds the variance that it leaves below 0.
    """
    if scheduler is None or not config.get("rescale_betas_zero_snr"):
        return
    options = scheduler.options
    if scheduler.diffusers == "HeunDiscrete" and not (
        options["use_karras_sigmas"] or options["use_exponential_sigmas"]
    ):
        raise FieldError(
            "scheduler",
            f"scheduler {scheduler.name!r} cannot draw with this base: its first step would be from unbounded noise.",
            "Take 'Heun Karras' or 'Heun Exponential'.",
        )
    if scheduler.options.get("use_beta_sigmas"):
        raise FieldError(
            "scheduler",
            f"scheduler {scheduler.name!r} cannot draw with this base: its noise has no largest level to space from.",
            f"Take {scheduler.sampler!r} with another schedule, such as '{scheduler.sampler} Simple'.",
        )
    if steps == 2 and "Ancestral" in scheduler.diffusers:
        problem = f"steps must be 1 or at least 3 with {scheduler.name} and this base, got 2."
        raise FieldError("steps", problem, "For example 25.")


def draws_noise(sampler: SchedulerMixin) -> bool:
    """Return whether `step` takes generators: ancestral and SDE schedulers draw noise from them, others ignore them."""
    return "generator" in inspect.signature(sampler.step).parameters


def step_of(sampler: SchedulerMixin, index: int, steps: int) -> int:
    """Return the step, from 0, that the prediction at a timestep belongs to. A step may take two predictions."""
    if sampler.order > 1:
        return index // sampler.order
    return max(0, index - (len(sampler.timesteps) - steps))  # PLMS: its first step takes two


_LMS_ORDER = 4  # diffusers' default


def step_options(sampler: SchedulerMixin, done: int) -> dict[str, int]:
    """Return options for a scheduler's next step, after `done` steps.

    LMS has as many slopes as steps were computed. diffusers takes its order from the position in the schedule instead,
    so img2img, which begins in the middle, would be integrated with coefficients of missing slopes.
    """
    return {"order": min(_LMS_ORDER, done + 1)} if isinstance(sampler, LMSDiscreteScheduler) else {}


def _zero_snr_options(kind: type, config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a class needs for zero terminal SNR (Lin et al. 2023, arXiv 2305.08891).

    Sampling must begin at the last timestep, which "leading" leaves out (their section 3.3). Classes that do not know
    `rescale_betas_zero_snr` get the rescaled betas themselves, with the last signal as small as diffusers' own classes
    take it, 2**-24, so that no sigma is infinite.
    """
    changed = {}
    if options.get("timestep_spacing") == "leading":
        changed["timestep_spacing"] = "trailing"
    if "rescale_betas_zero_snr" not in inspect.signature(kind).parameters:
        alphas = DDIMScheduler.from_config(config).alphas_cumprod.double()
        alphas[-1] = 2**-24
        previous = torch.cat([alphas.new_ones(1), alphas[:-1]])
        changed["trained_betas"] = (1 - alphas / previous).tolist()
    return changed
