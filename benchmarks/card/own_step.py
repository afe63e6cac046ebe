"""This project's training step on a base, without a run around it: no photos, no files, no validation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from sdpersonal.config import DreamboothSettings, TextualInversionSettings, TrainingSettings
from sdpersonal.models import LatentDistribution, SizeConditioning, StableDiffusion
from sdpersonal.training.control import NO_REQUEST
from sdpersonal.training.dataset import LatentDataset
from sdpersonal.training.distributed import average_gradients, init_distributed
from sdpersonal.training.gradients import Gradients
from sdpersonal.training.loss_inputs import prefetch
from sdpersonal.training.methods.factory import build_method, resolve_preset
from sdpersonal.training.oom_advice import OomAdvice
from sdpersonal.training.optim import EMA, NoEMA, make_optimizer
from sdpersonal.training.prompt_templates import CAPTION_TEMPLATES
from sdpersonal.training.step_result import StepResult
from sdpersonal.training.train_state import LoopConfig, LoopHooks, TrainState

ARMS = ("plain", "graph")
"""The ways in which `our_step` can take a step; the last is how a run does it."""

PHOTOS = 5
RANK, VECTORS = 16, 4


def settings_for(method: str, batch: int, **more: object) -> TrainingSettings:
    """method: "textual-inversion", or one of DreamboothSettings."""
    common = {"photos": Path("photos"), "token": "<bench/thing>", "batch": batch, "steps": 100_000} | more
    if method == "textual-inversion":
        return TextualInversionSettings(**({"init": "dog", "vectors": VECTORS} | common))
    return DreamboothSettings(**({"class_noun": "dog", "method": method, "rank": RANK} | common))


def train_state(base: StableDiffusion, settings: TrainingSettings, side: int) -> TrainState:
    """Build what a run builds for these settings, with latents of photos that there are none of."""
    accelerator = init_distributed()
    preset = resolve_preset(settings, base.kind, PHOTOS)
    method = build_method(settings, base, preset, accelerator, lambda line: None)
    optimizer = make_optimizer(settings.optimizer, method.param_groups(), preset.lr, preset.lr)
    ema = EMA(method.trainable_parameters(), preset.ema_decay) if preset.ema_decay else NoEMA()
    oom_advice = OomAdvice(base.device, settings, side, preset.batch)
    return TrainState(accelerator, method, _latents(base, settings, side), optimizer, oom_advice, ema)


def _latents(base: StableDiffusion, settings: TrainingSettings, side: int) -> LatentDataset:
    shape = base.latent_shape(side, side)
    generator = torch.Generator().manual_seed(0)
    means = [torch.randn(1, *shape, generator=generator).to(base.device) for _ in range(PHOTOS)]
    return LatentDataset(
        base,
        [LatentDistribution(mean, torch.full_like(mean, 0.1)) for mean in means],
        [[SizeConditioning.full(side, side)]] * PHOTOS,
        [CAPTION_TEMPLATES[settings.kind]] * PHOTOS,
        [f"photo {number}" for number in range(PHOTOS)],
        seed=0,
    )


def our_step(state: TrainState, batch: int, arm: str = ARMS[-1]) -> Callable[[], None]:
    """Return a function that takes the next training step as `fit` does, with the number of the last one read."""
    if arm not in ARMS:
        raise ValueError(f"{arm!r} is none of {', '.join(ARMS)}")
    config = LoopConfig(Path("run"), 100_000, batch, 1, 100_000, 1e-4, lambda step: 1.0, {})
    method, optimizer, accelerator = state.method, state.optimizer, state.accelerator
    state.gradients = Gradients(method, accelerator, state.scaler, captures=arm == "graph")
    parameters, pending = list(method.trainable_parameters().values()), deque[StepResult]()
    inputs_of_steps = prefetch(partial(state.load_inputs, config), range(state.step, config.steps), accelerator.device)

    def step() -> None:
        number, (inputs,) = state.step, next(inputs_of_steps)
        learning_rates = method.learning_rates(number)
        for group, rate in zip(optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = rate
        losses = [state.gradients.add(inputs, number)]
        average_gradients(accelerator, parameters)
        grad_norm = state.gradients.apply(optimizer)
        state.ema.update(number)
        pending.append(StepResult.of(accelerator, number, learning_rates, losses, grad_norm, None, NO_REQUEST))
        state.step += 1
        if len(pending) > 1:
            pending.popleft().record(state, config, LoopHooks())

    return step
