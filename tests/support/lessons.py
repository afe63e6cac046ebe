"""Lessons on narrow bases, ready for the loop, without a whole run around them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sdpersonal.config import DreamboothSettings, InversionSettings, Training
from sdpersonal.models import load_base
from sdpersonal.photos.loading import load_photos
from sdpersonal.training.dataset import TrainingPhotos
from sdpersonal.training.distributed import join
from sdpersonal.training.ema import NoAverage
from sdpersonal.training.loop import Lesson, Plan
from sdpersonal.training.methods.factory import build, chosen, method_name
from sdpersonal.training.oom_advice import Room
from sdpersonal.training.optim import make_optimizer
from sdpersonal.training.presets import preset
from sdpersonal.training.prompt_templates import TEMPLATES

METHODS = ("inversion", "lora", "pivotal", "full")


def settings_for(method: str, photos: Path, folder: Path, **more: object) -> Training:
    common = {"photos": photos, "token": "<me/thing>", "base": str(folder), "steps": 6, "batch": 2} | more
    if method == "inversion":
        common.pop("rank", None)
        return InversionSettings(**({"vectors": 2} | common))
    return DreamboothSettings(**({"class_noun": "cat", "method": method, "rank": 2} | common))


def lesson_for(settings: Training, average=lambda trained: NoAverage(), pivot: int = 3) -> Lesson:
    """As a run makes it. pivot: of a pivotal one, in place of hundreds of steps."""
    base = load_base(settings.base, "cpu")
    photos = load_photos(settings.photos, 64)
    usual = preset(method_name(settings), base.kind, settings.kind)
    usual = replace(usual, pivot=min(usual.pivot, pivot))
    wanted = replace(chosen(settings, base, len(photos.photos)), pivot=usual.pivot)
    method = build(settings, base, wanted, join(), print)
    optimizer = make_optimizer(settings.optimizer, method.groups(), wanted.lr, usual.lr)
    data = TrainingPhotos(base, photos.photos, TEMPLATES[settings.kind], settings.seed, settings.flip)
    room = Room(torch.device("cpu"), settings, 64, wanted.batch)
    return Lesson(join(), method, data, optimizer, room, average(method.trained()))


def plan_for(run: Path, steps: int, **more: object) -> Plan:
    plan = Plan(run, 0, steps, batch=2, accumulate=1, save_every=steps, lr=1e-3, factor=lambda step: 1.0, identity={})
    return replace(plan, **more)


def copied(trained) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained.items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Bit for bit; a NaN is equal to itself."""
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and one[name].numpy().tobytes() == two[name].detach().numpy().tobytes()
        for name in one
    )
