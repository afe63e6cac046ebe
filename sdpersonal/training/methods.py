"""Which method a run's settings ask for."""

from __future__ import annotations

from dataclasses import replace

from ..bases import StableDiffusion
from ..config import DreamboothSettings, Training
from .dreambooth import DreamboothLora
from .method import Method
from .presets import Preset, preset
from .textual_inversion import TextualInversion


def method_name(settings: Training) -> str:
    """As the card, the run's folder and the table of presets write it: "textual-inversion", "dreambooth-lora", ..."""
    return f"dreambooth-{settings.method}" if isinstance(settings, DreamboothSettings) else TextualInversion.name


def chosen(settings: Training, base: StableDiffusion) -> Preset:
    """The preset of the method on this kind of base, with what the user set in its place."""
    usual = preset(method_name(settings), base.kind)
    rate = settings.lr or usual.lr
    return replace(
        usual,
        steps=settings.steps or usual.steps,
        batch=settings.batch or usual.batch,
        lr=rate,
        rows_lr=usual.rows_lr * rate / usual.lr,
        targets=getattr(settings, "targets", None) or usual.targets,
    )


def build(settings: Training, base: StableDiffusion, preset: Preset) -> Method:
    """The method, ready to learn on this base. Raises PersonalError where the settings do not suit it."""
    if isinstance(settings, DreamboothSettings):
        return DreamboothLora(base, settings.class_noun, settings.rank, 0.0, preset, settings.seed)
    return TextualInversion(base, settings.init or settings.kind, settings.vectors, preset)
