"""One hidden step of everything before the first real one: what will fail fails in the first seconds, and what it takes
is measured instead of guessed. Nothing of it is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import storage
from ..errors import DiskFull
from ..models.oom import GB, memory_usage
from ..prompts import printable
from .checkpoint import CHECKPOINT_LIMIT, CheckpointState, save_checkpoint
from .loop import MAX_GRAD_NORM, TrainState

DRY_RUN_FOLDER = "rehearsal"
COST_FILE = "cost.json"
_LAST_STEP = 1 << 30  # as a step's number: a pivotal run's LoRA, which takes the most, comes last
_STATE_SIZE = {"adamw": 3.0, "prodigy": 5.0, "adamw8bit": 1.5}  # gradients and moments, in sizes of what trains
_WARM_UP_SECONDS = 2.0  # seconds; a first step that takes less is mostly warming up, so a second one is timed


@dataclass(frozen=True)
class Cost:
    """What was measured: bytes held by this process at most, bytes it can have; seconds of a step, of a checkpoint."""

    held: int
    room: int
    step: float
    checkpoint: float

    def memory(self) -> str:
        return f"{self.held / GB:.1f} of {self.room / GB:.1f} GB of memory"

    def as_json(self) -> dict[str, float]:
        return {"held": self.held, "room": self.room, "step": round(self.step, 4)}


def perform_dry_run(lesson: TrainState, batch: int, accumulate: int, run: Path) -> Cost:
    """A step at rate zero and, in the first process, a checkpoint; then all is as it was. A step has `accumulate`
    batches of `batch` photos.

    Raises UserError where the memory cannot hold what trains, DiskFull where the disk cannot hold its checkpoints.
    """
    optimizer, trained, room = lesson.optimizer, lesson.method.trainable_parameters(), lesson.room
    size = sum(parameter.numel() * 4 for parameter in trained.values())
    # Known before it is allocated: a machine that runs out may end us without a word.
    room.check(round(_STATE_SIZE[room.settings.optimizer] * size), "gradients and moments")
    seconds = _time_step(lesson, batch, accumulate)
    if seconds < _WARM_UP_SECONDS:
        seconds = _time_step(lesson, batch, accumulate)
    began = time.monotonic()
    if lesson.accelerator.is_main_process:
        _check_disk(run, (CHECKPOINT_LIMIT + 2) * lesson.checkpoint_state().size())
        _try_checkpoint(run, lesson.checkpoint_state())
    writing = time.monotonic() - began
    optimizer.state.clear()
    return Cost(*memory_usage(room.device), seconds, writing)


def _time_step(lesson: TrainState, batch: int, accumulate: int) -> float:
    """Seconds of a whole step that changes nothing: the rates are zero."""
    optimizer, began = lesson.optimizer, time.monotonic()
    for _ in range(accumulate):
        loss = lesson.method.loss(lesson.photos.samples(range(batch)), _LAST_STEP).mean() / accumulate
        loss.backward()
    norm = nn.utils.clip_grad_norm_(lesson.method.trainable_parameters().values(), MAX_GRAD_NORM)
    if torch.isfinite(norm):  # else even at rate zero it would spoil what trains; the first real step will say so
        with _zero_lr(optimizer):
            optimizer.step()
    optimizer.zero_grad()
    if lesson.room.device.type == "cuda":
        torch.cuda.synchronize(lesson.room.device)
    return time.monotonic() - began


@contextmanager
def _zero_lr(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """What the groups hold comes back, also what an optimiser counts in them."""
    before = [
        {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)


def _try_checkpoint(run: Path, learned: CheckpointState) -> None:
    place = storage.make_folder(run / DRY_RUN_FOLDER)
    try:
        save_checkpoint(place, 0, learned, {})
    finally:
        storage.remove(place)


def _check_disk(run: Path, need: int) -> None:
    free = storage.free_bytes(run)
    if need > free:
        raise DiskFull(
            f"Checkpoints need about {need / GB:.1f} GB in {printable(str(run))}; {free / GB:.1f} GB are free.",
            "Make room, or give --run on another disk.",
        )


def format_duration(seconds: float) -> str:
    """8 s, 1:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    unit, name = (60, "h") if whole >= 3600 else (1, "min")
    large, small = divmod(round(seconds / unit), 60)
    return f"{large}:{small:02d} {name}"
