"""Optimisers by name, and the learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..config import TrainingSettings
from ..errors import UserError
from .presets import Preset
from .prodigy import Prodigy


def make_optimizer(name: str, groups: list[dict], main_rate: float, usual_rate: float) -> torch.optim.Optimizer:
    """The optimiser of that name for these groups. Raises UserError where it cannot be had.

    main_rate: the method's main learning rate; Prodigy finds its own and takes the groups' only relative to it.
    usual_rate: the preset's, from a tenth of which Prodigy starts. From the authors' 1e-6 a LoRA of the built-in base
    learned nothing for 60 steps, the loss staying at 0.50; from a tenth it is 0.27 by then (AdamW: 0.20).
    """
    if name == "prodigy":
        return Prodigy([group | {"lr": group["lr"] / main_rate} for group in groups], d0=usual_rate / 10)
    if name == "adamw8bit":
        return _import_bitsandbytes().optim.AdamW8bit(groups)
    return torch.optim.AdamW(groups, fused=True)


def check_available(name: str) -> None:
    """Raise UserError where the optimiser of that name needs a package that is not installed."""
    if name == "adamw8bit":
        _import_bitsandbytes()


def lr_factor(settings: TrainingSettings, preset: Preset) -> Callable[[int], float]:
    """What the method's rates are multiplied with at a step: a pure function of it and of the number of steps.

    Cosine (Loshchilov and Hutter 2017, arXiv 1608.03983) falls from 1 to 0. There is no warm-up: what is trained starts
    from nothing (a LoRA) or from words' own rows, and has no moments that a first large step could spoil.
    """
    times = (settings.lr or 1.0) / preset.lr if settings.optimizer == "prodigy" else 1.0
    if settings.schedule == "constant":
        return lambda step: times
    return lambda step: times * 0.5 * (1 + math.cos(math.pi * step / preset.steps))


def _import_bitsandbytes():
    try:
        import bitsandbytes
    except ImportError:
        raise UserError(
            "--optimizer adamw8bit needs the package bitsandbytes, which is not installed.",
            "pip install 'sdpersonal[8bit]', or take --optimizer adamw.",
        ) from None
    return bitsandbytes
