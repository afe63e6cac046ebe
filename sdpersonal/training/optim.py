"""Make optimizers by name, and the learning rate schedule of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..config import TrainingSettings
from ..errors import UserError
from .presets import Preset
from .prodigy import Prodigy


def make_optimizer(name: str, groups: list[dict], lr: float, default_lr: float) -> torch.optim.Optimizer:
    """Make the optimizer of that name for these groups. Raises UserError if its package is not installed.

    main_rate: the method's main learning rate; Prodigy finds its own and uses the groups' only relative to it.
    usual_rate: the preset's, from a tenth of which Prodigy starts. From the authors' 1e-6 a LoRA of the built-in base
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
