"""Train states on narrow models, ready for the loop, without a whole run around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from sdpersonal.config import DreamboothSettings, TextualInversionSettings, TrainingSettings
from sdpersonal.models import load_base
from sdpersonal.photos.loading import load_photos
from sdpersonal.training.dataset import PhotoDataset
from sdpersonal.training.distributed import init_distributed
from sdpersonal.training.loop import fit
from sdpersonal.training.methods.factory import build_method, method_name, resolve_preset
from sdpersonal.training.oom_advice import OomAdvice
from sdpersonal.training.optim import EMA, NoEMA, make_optimizer
from sdpersonal.training.presets import preset
from sdpersonal.training.progress_log import ProgressLog
from sdpersonal.training.prompt_templates import CAPTION_TEMPLATES
from sdpersonal.training.train_state import LoopConfig, LoopHooks, TrainState
from sdpersonal.training.validation import Validator

METHODS = ("inversion", "lora", "pivotal", "full")


def settings_for(method: str, photos: Path, folder: Path, **more: object) -> TrainingSettings:
    common = {"photos": photos, "token": "<me/thing>", "base": str(folder), "steps": 6, "batch": 2} | more
    if method == "inversion":
        common.pop("rank", None)
        return TextualInversionSettings(**({"vectors": 2} | common))
    return DreamboothSettings(**({"class_noun": "cat", "method": method, "rank": 2} | common))


def train_state_for(
    settings: TrainingSettings, make_ema: Callable[..., EMA | NoEMA] = lambda parameters: NoEMA(), pivot_steps: int = 3
) -> TrainState:
    """Build a state as a run does. pivot_steps: of a pivotal run, in place of hundreds."""
    base = load_base(settings.base, "cpu")
    photos = load_photos(settings.photos, 64)
    usual = preset(method_name(settings), base.kind, settings.kind)
    resolved = resolve_preset(settings, base.kind, len(photos.photos))
    resolved = replace(resolved, pivot_steps=min(usual.pivot_steps, pivot_steps))
    method = build_method(settings, base, resolved, init_distributed(), print)
    optimizer = make_optimizer(settings.optimizer, method.param_groups(), resolved.lr, usual.lr)
    data = PhotoDataset(base, photos.photos, CAPTION_TEMPLATES[settings.kind], settings.seed, settings.flip)
    oom_advice = OomAdvice(torch.device("cpu"), settings, 64, resolved.batch)
    return TrainState(init_distributed(), method, data, optimizer, oom_advice, make_ema(method.trainable_parameters()))


def loop_config_for(run: Path, steps: int, **more: object) -> LoopConfig:
    config = LoopConfig(
        run, steps, batch=2, accumulate=1, save_every=steps, lr=1e-3, lr_factor=lambda step: 1.0, identity={}
    )
    return replace(config, **more)


def cloned_tensors(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def equal_tensors(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    """Compare bit for bit; a NaN is equal to itself."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and left[name].numpy().tobytes() == right[name].detach().numpy().tobytes()
        for name in left
    )


def fit_to_end(state: TrainState, config: LoopConfig, validator: Validator | None = None) -> ProgressLog:
    """Train from the state's step to the last one; return the log."""
    log = ProgressLog(config.run, state.step, config.steps)
    fit(state, config, LoopHooks(log, validator))
    return log
