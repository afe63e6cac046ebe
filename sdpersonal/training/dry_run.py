"""Run one step and checkpoint before the first real ones: errors show in the first seconds, and the cost is measured
instead of guessed. The dry run changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import storage
from ..display.units import GB
from ..errors import DiskFull, printable
from ..models.oom import memory_usage
from .checkpoint import CHECKPOINT_LIMIT, CheckpointState, save_checkpoint
from .run_dir import DRY_RUN_FOLDER
from .train_state import TrainState

_LAST_STEP = 1 << 30  # a step number past any pivot: a pivotal run's LoRA, which takes the most memory, trains last
_STATE_SIZE = {
    "adamw": 3.0,
    "prodigy": 5.0,
    "adamw8bit": 1.5,
}  # gradients and moments, relative to the trained parameters
_AUTOCAST_COPY_SIZE = 0.5  # the same for the copy in two bytes that autocast computes with
_WARM_UP_SECONDS = 2.0  # a first step that takes less is mostly warm-up, so a second one is timed


@dataclass(frozen=True)
class Cost:
    """The measured cost: peak bytes of this process, the bytes that it can have, seconds of a step and a checkpoint."""

    used_bytes: int
    available_bytes: int
    step: float
    checkpoint: float

    def memory_text(self) -> str:
        return f"{self.used_bytes / GB:.1f} of {self.available_bytes / GB:.1f} GB of memory"

    def as_json(self) -> dict[str, float]:
        return {"held": self.used_bytes, "room": self.available_bytes, "step": round(self.step, 4)}


def perform_dry_run(state: TrainState, batch: int, accumulate: int, run: Path) -> Cost:
    """Measure a step at learning rate zero and, in the main process, a checkpoint, then undo both. A step has
    `accumulate` batches of `batch` photos.

    Raises UserError if memory cannot hold the training, DiskFull if the disk cannot hold its checkpoints.
    """
    optimizer, parameters, oom_advice = state.optimizer, state.method.trainable_parameters(), state.oom_advice
    size = sum(parameter.numel() * 4 for parameter in parameters.values())
    # Checked before allocation: the system may kill a process that runs out of memory, without a message.
    share = _STATE_SIZE[oom_advice.settings.optimizer] + (_AUTOCAST_COPY_SIZE if state.method.autocast_dtype else 0)
    oom_advice.require(round(share * size), "gradients and moments")
    seconds = _time_step(state, batch, accumulate)
    if seconds < _WARM_UP_SECONDS or oom_advice.device.type == "cuda":  # there it is captured in a graph
        seconds = _time_step(state, batch, accumulate)
    started_at = time.monotonic()
    if state.accelerator.is_main_process:
        _check_disk(run, (CHECKPOINT_LIMIT + 2) * state.checkpoint_state().size())
        _try_checkpoint(run, state.checkpoint_state())
    checkpoint_seconds = time.monotonic() - started_at
    optimizer.state.clear()
    return Cost(*memory_usage(oom_advice.device), seconds, checkpoint_seconds)


def _time_step(state: TrainState, batch: int, accumulate: int) -> float:
    """Measure the seconds of a whole step that changes nothing: the learning rates are zero."""
    optimizer, started_at = state.optimizer, time.monotonic()
    for _ in range(accumulate):
        state.gradients.add(state.method.inputs(state.photos.batch(range(batch))), _LAST_STEP, 1 / accumulate)
    if state.gradients.are_finite():  # else even rate zero would spoil the parameters
        with _zero_lr(optimizer):
            state.gradients.apply(optimizer)
    else:
        state.gradients.clear(optimizer)  # the first real step reports it
    if state.oom_advice.device.type == "cuda":
        torch.cuda.synchronize(state.oom_advice.device)
    return time.monotonic() - started_at


@contextmanager
def _zero_lr(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Set all rates to 0 in the block, then restore the groups, with all that the optimizer stores in them."""
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


def _try_checkpoint(run: Path, checkpoint: CheckpointState) -> None:
    folder = storage.make_folder(run / DRY_RUN_FOLDER)
    try:
        save_checkpoint(folder, 0, checkpoint, {})
    finally:
        storage.remove(folder)


def _check_disk(run: Path, bytes_needed: int) -> None:
    free = storage.free_bytes(run)
    if bytes_needed > free:
        raise DiskFull(
            f"Checkpoints need about {bytes_needed / GB:.1f} GB in {printable(str(run))}; {free / GB:.1f} GB are free.",
            "Free some space, or give a --run folder on another disk.",
        )
