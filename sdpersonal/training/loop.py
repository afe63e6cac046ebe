"""The training loop, for every method and any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import Diverged, Interrupted
from .checkpoint import save_checkpoint
from .dataset import Batch, TrainingPhotos
from .method import Method
from .progress import Journal
from .stopping import StopSignals

MAX_GRAD_NORM = 1.0
ABSURD_LOSS = 100.0  # targets have variance 1: a prediction this far off is none


@dataclass(frozen=True)
class Plan:
    steps: int
    batch: int  # photos a step in each process
    save_every: int
    identity: dict[str, object]  # what must be equal for a run to go on


def learn(
    accelerator: Accelerator, method: Method, photos: TrainingPhotos, optimizer, plan: Plan, start: int, run: Path
) -> list[float]:
    """Train from step `start` to `plan.steps`; returns the loss of every step.

    Raises Diverged at the first loss or gradient that is not finite, Interrupted (with a checkpoint) on Ctrl-C or
    SIGTERM.
    """
    trained = method.trained()
    with (
        Journal(run, start, plan.steps) if accelerator.is_main_process else _Silent() as journal,
        StopSignals() as stop,
    ):
        for step in range(start, plan.steps):
            batch = photos.samples(_share_of(step, plan.batch, accelerator))
            for group, rate in zip(optimizer.param_groups, method.rates(step), strict=True):
                group["lr"] = rate
            loss = method.loss(batch, step).mean()
            accelerator.backward(loss)
            loss = _average(accelerator, loss, trained.values())
            norm = nn.utils.clip_grad_norm_(trained.values(), MAX_GRAD_NORM)
            _check_finite(step, float(loss), float(norm), optimizer, batch, run)
            optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            journal.step(done, float(loss))
            if accelerator.is_main_process and (done % plan.save_every == 0 or done == plan.steps or stop.asked):
                save_checkpoint(run, done, trained, optimizer, plan.identity)
            if stop.asked and done < plan.steps:
                raise Interrupted(f"Stopped after step {done} of {plan.steps}; it is saved.", "Add --resume to go on.")
    return journal.losses


def _share_of(step: int, batch: int, accelerator: Accelerator) -> range:
    """The numbers of this process's samples, counted over the whole run: as one process with the joint batch would."""
    first = (step * accelerator.num_processes + accelerator.process_index) * batch
    return range(first, first + batch)


def _average(accelerator: Accelerator, loss: Tensor, trained: Iterable[nn.Parameter]) -> Tensor:
    """Mean gradients and loss over processes, in one message: what trains here is a few MB, too little for DDP's
    buckets."""
    if accelerator.num_processes == 1:
        return loss.detach()
    trained = list(trained)
    flat = torch.cat([loss.detach().view(1), *(parameter.grad.flatten() for parameter in trained)])
    flat = accelerator.reduce(flat, reduction="mean")
    place = 1
    for parameter in trained:
        parameter.grad.copy_(flat[place : place + parameter.numel()].view_as(parameter))
        place += parameter.numel()
    return flat[0]


def _check_finite(step: int, loss: float, norm: float, optimizer, batch: Batch, run: Path) -> None:
    if math.isfinite(loss) and math.isfinite(norm) and loss < ABSURD_LOSS:
        return
    what = "loss" if not (math.isfinite(loss) and loss < ABSURD_LOSS) else "gradient"
    value = loss if what == "loss" else norm
    rate = optimizer.param_groups[0]["lr"]
    shown = "NaN" if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.3g}"
    where = f"step {step + 1} ({', '.join(dict.fromkeys(batch.photos))}; --lr {rate:g})"
    raise Diverged(
        f"The {what} became {shown} at {where}. No concept was made.",
        f"Try --lr {rate / 10:g}. Checkpoints up to the last good one stay in {run}.",
    )


class _Silent:
    """The journal of every process but the first."""

    losses: tuple[float, ...] = ()

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_) -> None:
        pass

    def step(self, step: int, loss: float) -> None:
        pass
