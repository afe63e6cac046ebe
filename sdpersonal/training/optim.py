"""Build optimizers by name, the learning rate schedule of a run, and the moving average of its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..config import TrainingSettings
from ..errors import UserError
from .presets import Preset
from .prodigy import Prodigy


def make_optimizer(name: str, groups: list[dict], lr: float, default_lr: float) -> torch.optim.Optimizer:
    """Make the optimizer of that name for these groups. Raises UserError if its package is not installed.

    lr: the method's main learning rate; Prodigy finds its own and uses the groups' only relative to it. default_lr: the
    preset's, from a tenth of which Prodigy starts. From the authors' 1e-6 a LoRA of the built-in base
    did not train for 60 steps, the loss staying at 0.50; from a tenth it is 0.27 by then (AdamW: 0.20).
    """
    if name == "prodigy":
        return Prodigy([group | {"lr": group["lr"] / lr} for group in groups], d0=default_lr / 10)
    if name == "adamw8bit":
        return _import_bitsandbytes().optim.AdamW8bit(groups)
    return torch.optim.AdamW(groups, fused=True)


def check_available(name: str) -> None:
    """Raise UserError if the optimizer of that name needs a package that is not installed."""
    if name == "adamw8bit":
        _import_bitsandbytes()


def lr_factor(settings: TrainingSettings, preset: Preset) -> Callable[[int], float]:
    """Return the factor of the method's learning rates, as a pure function of the step.

    Cosine (Loshchilov and Hutter 2017, arXiv 1608.03983) falls from 1 to 0. There is no warm-up: the parameters start
    at zero (a LoRA) or from words' embeddings, and have no moments that a first large step could spoil.
    """
    scale = (settings.lr or 1.0) / preset.lr if settings.optimizer == "prodigy" else 1.0
    if settings.schedule == "constant":
        return lambda step: scale
    return lambda step: scale * 0.5 * (1 + math.cos(math.pi * step / preset.steps))


def _import_bitsandbytes():
    try:
        import bitsandbytes
    except ImportError:
        raise UserError(
            "--optimizer adamw8bit needs the package bitsandbytes, which is not installed.",
            "pip install 'sdpersonal[8bit]', or take --optimizer adamw.",
        ) from None
    return bitsandbytes


class EMA:
    """Exponential moving average of the trained parameters, fp32; it is what is sampled, measured and saved (Polyak and
    Juditsky 1992; every diffusion model since Ho et al. 2020 uses one).

    decay: 0.95 averages about the last twenty steps. At a constant rate single steps fluctuate: on the built-in base
    the likeness of consecutive checkpoints differed by a fifth. The average does not, so the rate can be twice as high,
    and half the steps suffice (docs/performance.md).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self._parameters, self._decay = dict(parameters), decay
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update after step `step`, from 0. Early steps decay faster: the initial values are no step's result."""
        decay = min(self._decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.values.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the average into the trained parameters inside the block. Nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data


class NoEMA:
    """No averaging: for methods whose trained parameters are too large for a second copy."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def update(self, step: int) -> None:
        pass

    @contextmanager
    def applied(self) -> Iterator[None]:
        yield
