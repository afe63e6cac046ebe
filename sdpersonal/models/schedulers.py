"""Hold the noise schedule that a model was trained with, and use diffusers' schedulers for sampling from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import diffusers
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LMSDiscreteScheduler
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..config.scheduler_table import Scheduler
from ..errors import FieldError
from .backends import to_device


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving diffusion (Ho et al. 2020, eq. 4) with `len(alphas_cumprod)` discrete steps.

    It is always in fp32, whatever precision the model runs in: in bf16 a thousand noise levels collapse to 192.
    """

    alphas_cumprod: Tensor  # (T,) fp32, on the base's device
    prediction_type: Literal["epsilon", "v_prediction"]

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Add noise: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise; latents and noise (B, C, h, w), t (B,)."""
        signal, sigma = self._at(t)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the training target: the noise, or the velocity (Salimans and Ho 2022, section 2.4)."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._at(t)
        return signal * noise - sigma * latents

    def predict_x0(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """Compute x_0 from the prediction at x_t: `add_noise` and `target`, solved for the latents; t (B,)."""
        signal, sigma = self._at(t)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * predicted) / signal
        return signal * noisy - sigma * predicted

    def prediction_of(self, noisy: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Compute the prediction at x_t that gives this x_0: the inverse of `predict_x0`; t (B,)."""
        signal, sigma = self._at(t)
        if self.prediction_type == "epsilon":
            return (noisy - signal * x0) / sigma
        return (signal * noisy - x0) / sigma

    def shift(self, noisy: Tensor, offset: Tensor, t: Tensor) -> Tensor:
        """Return x_t of x_0 + offset instead of x_0, with the same noise; t (B,)."""
        return noisy + self._at(t)[0] * offset

    def shift_prediction(self, predicted: Tensor, offset: Tensor, t: Tensor) -> Tensor:
        """Return the prediction at x_t for x_0 + offset, given that for x_0, with the same noise; t (B,)."""
        return predicted if self.prediction_type == "epsilon" else predicted - self._at(t)[1] * offset

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()


class DiffusersScheduler(Protocol):
    """What all of diffusers' schedulers for epsilon and v-prediction have; their common base class lacks it."""

    config: Any
    order: int
    timesteps: Tensor

    @property
    def init_noise_sigma(self) -> Any: ...  # float or Tensor

    def set_timesteps(self, num_inference_steps: int, *, device: torch.device) -> None: ...

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor: ...

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any: ...


def make_scheduler(config: Mapping[str, Any], scheduler: Scheduler | None = None) -> DiffusersScheduler:
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


def import_all_schedulers() -> None:
    """Import the schedulers that diffusers imports when it reads the configuration of any: all that can replace it."""
    _ = DDIMScheduler().compatibles  # type: ignore[attr-defined]  # mypy reads a stand-in of diffusers


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
            f"scheduler {scheduler.name!r} cannot be used with this base: its first step would be infinitely noisy.",
            "Use 'Heun Karras' or 'Heun Exponential'.",
        )
    if scheduler.options.get("use_beta_sigmas"):
        raise FieldError(
            "scheduler",
            f"scheduler {scheduler.name!r} cannot be used with this base: its noise has no largest level.",
            f"Use {scheduler.sampler!r} with another schedule, such as '{scheduler.sampler} Simple'.",
        )
    if steps == 2 and "Ancestral" in scheduler.diffusers:
        problem = f"steps must be 1 or at least 3 with {scheduler.name} and this base, got 2."
        raise FieldError("steps", problem, "For example 25.")


_LMS_ORDER = 4  # diffusers' default


class SchedulerAdapter:
    """A diffusers scheduler, set up for one batch of images; what its classes do differently is handled here.

    timesteps: those that are computed, without the skipped steps of img2img, on the device. A step may take two.
    """

    def __init__(self, scheduler: DiffusersScheduler, steps: int, skipped_steps: int, device: torch.device):
        # The classes look numbers up by the timestep; with one on a card they would wait for it in every step.
        scheduler.set_timesteps(steps, device=torch.device("cpu"))
        self._scheduler, self._steps, self._device = scheduler, steps, device
        self._first = skipped_steps * scheduler.order  # Heun and DPM2 have two timesteps per step
        self._timesteps = scheduler.timesteps[self._first :]  # on the CPU
        self.timesteps = to_device(self._timesteps, device)
        if hasattr(scheduler, "set_begin_index"):  # DDIM finds its index by the timestep
            # Else the index is looked up, and wrong if two timesteps round to the same.
            scheduler.set_begin_index(self._first)

    def progress(self, i: int) -> float:
        """Return the progress of the sampling in the middle of the step of timestep i: 0 is noise, 1 the image."""
        index, order = self._first + i, self._scheduler.order
        if order > 1:
            step = index // order
        else:
            step = max(0, index - (len(self._scheduler.timesteps) - self._steps))  # PLMS: its first step takes two
        return sampling_progress(step, self._steps)

    def scale_noise(self, noise: Tensor) -> Tensor:
        """Scale noise of standard deviation 1 to the first latents."""
        return noise * self._scheduler.init_noise_sigma

    def add_noise(self, latents: Tensor, noise: Tensor, i: int) -> Tensor:
        """Add noise to the level at which timestep i begins; none after the last. noise: (B, C, h, w)."""
        latents = latents.expand_as(noise)
        if i == len(self._timesteps):
            return latents
        with self._without_waiting():
            return self._scheduler.add_noise(latents, noise, self._timesteps[i : i + 1])

    def scale_model_input(self, latents: Tensor, i: int) -> Tensor:
        """Scale latents at timestep i to what the UNet was trained on: schedulers in sigmas keep them unscaled."""
        with self._without_waiting():
            return self._scheduler.scale_model_input(latents, self._timesteps[i])

    def step(self, prediction: Tensor, i: int, latents: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return the next latents. generators: one per image; ancestral and SDE schedulers draw noise from them."""
        options: dict[str, Any] = {}
        if generators and "generator" in inspect.signature(self._scheduler.step).parameters:
            options["generator"] = generators
        if isinstance(self._scheduler, LMSDiscreteScheduler):
            # LMS has as many slopes as steps were computed. diffusers takes its order from the position in the
            # schedule instead, so img2img, which begins in the middle, would use coefficients of missing slopes.
            options["order"] = min(_LMS_ORDER, i + 1)
        with self._without_waiting():
            return self._scheduler.step(prediction, self._timesteps[i], latents, **options).prev_sample

    def _without_waiting(self) -> AbstractContextManager[object]:
        return nullcontext() if self._device.type == "cpu" else _NumbersOnCpu(self._device)


class _NumbersOnCpu(TorchFunctionMode):
    """Keeps a scheduler from waiting for the device that the latents are on.

    diffusers' classes copy their numbers to that device one by one, solve small systems of equations there, and copy
    noise from generators on the CPU; each of these waits until the device has computed all that was launched before.
    Here, what a class makes without the latents stays on the CPU. Where it meets them, torch takes a single number from
    the CPU as it is, and other tensors are copied without waiting.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        values = [*args, *kwargs.values()]
        replace = self._to_device if any(map(self._is_on_device, values)) else self._to_cpu
        return func(*map(replace, args), **{name: replace(value) for name, value in kwargs.items()})

    def _is_on_device(self, value: object) -> bool:
        if isinstance(value, list | tuple):
            return any(map(self._is_on_device, value))
        return isinstance(value, Tensor) and value.device.type == self._device.type

    def _to_device(self, value: Any) -> Any:
        """Copy what is on the CPU to the device, also in lists, but for single numbers."""
        if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            return type(value)(map(self._to_device, value))
        is_copied = isinstance(value, Tensor) and value.ndim > 0 and value.device.type == "cpu"
        return to_device(value, self._device) if is_copied else value

    def _to_cpu(self, value: Any) -> Any:
        """Name the CPU where the device is named."""
        is_named = isinstance(value, torch.device) and value.type == self._device.type
        return torch.device("cpu") if is_named else value


def sampling_progress(step: int, steps: int) -> float:
    """Return the progress of the sampling in the middle of a step (from 0): 0 is noise, 1 the image."""
    return (step + 0.5) / steps


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
