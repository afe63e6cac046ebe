"""Lessons on narrow bases, ready for the loop, without a whole run around them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sdpersonal.config import DreamboothSettings, TextualInversionSettings, TrainingSettings
from sdpersonal.models import load_base
from sdpersonal.photos.loading import load_photos
from sdpersonal.training.dataset import PhotoDataset
from sdpersonal.training.distributed import init_distributed
from sdpersonal.training.ema import NoEMA
from sdpersonal.training.loop import LoopConfig, TrainState
from sdpersonal.training.methods.factory import build_method, method_name, resolve_preset
from sdpersonal.training.oom_advice import OomAdvice
from sdpersonal.training.optim import make_optimizer
from sdpersonal.training.presets import preset
from sdpersonal.training.prompt_templates import CAPTION_TEMPLATES

METHODS = ("inversion", "lora", "pivotal", "full")


def settings_for(method: str, photos: Path, folder: Path, **more: object) -> TrainingSettings:
    common = {"photos": photos, "token": "<me/thing>", "base": str(folder), "steps": 6, "batch": 2} | more
    if method == "inversion":
        common.pop("rank", None)
        return TextualInversionSettings(**({"vectors": 2} | common))
    return DreamboothSettings(**({"class_noun": "cat", "method": method, "rank": 2} | common))


def train_state_for(settings: TrainingSettings, average=lambda trained: NoEMA(), pivot: int = 3) -> TrainState:
    """As a run makes it. pivot: of a pivotal one, in place of hundreds of steps."""
    base = load_base(settings.base, "cpu")
    photos = load_photos(settings.photos, 64)
    usual = preset(method_name(settings), base.kind, settings.kind)
    usual = replace(usual, pivot_steps=min(usual.pivot_steps, pivot))
    wanted = replace(resolve_preset(settings, base.kind, len(photos.photos)), pivot_steps=usual.pivot_steps)
    method = build_method(settings, base, wanted, init_distributed(), print)
    optimizer = make_optimizer(settings.optimizer, method.param_groups(), wanted.lr, usual.lr)
    data = PhotoDataset(base, photos.photos, CAPTION_TEMPLATES[settings.kind], settings.seed, settings.flip)
    room = OomAdvice(torch.device("cpu"), settings, 64, wanted.batch)
    return TrainState(init_distributed(), method, data, optimizer, room, average(method.trainable_parameters()))


def loop_config_for(run: Path, steps: int, **more: object) -> LoopConfig:
    plan = LoopConfig(
        run, 0, steps, batch=2, accumulate=1, save_every=steps, lr=1e-3, lr_factor=lambda step: 1.0, identity={}
    )
    return replace(plan, **more)


def cloned_tensors(trained) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained.items()}


def equal_tensors(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Bit for bit; a NaN is equal to itself."""
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and one[name].numpy().tobytes() == two[name].detach().numpy().tobytes()
        for name in one
    )
