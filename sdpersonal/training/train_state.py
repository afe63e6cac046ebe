"""Define the objects of the training loop: the state that it trains, its settings, and what it reports to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from ..evaluation import Scorer
from ..models import StableDiffusion
from .checkpoint import CheckpointState
from .control import StopSignals
from .dataset import PhotoDataset
from .distributed import Accelerator
from .gradients import Gradients
from .loss_inputs import LossInputs
from .methods.protocol import Method
from .oom_advice import OomAdvice
from .optim import EMA, NoEMA
from .progress_log import ProgressLog
from .validation import Validator


@dataclass
class TrainState:
    """What a training step works with and changes.

    step: the number of finished steps; captures: whether passes are captured in CUDA graphs, None: on a card.
    """

    accelerator: Accelerator
    method: Method
    photos: PhotoDataset
    optimizer: torch.optim.Optimizer
    oom_advice: OomAdvice
    ema: EMA | NoEMA = field(default_factory=NoEMA)
    step: int = 0
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    say: Callable[[str], None] = print
    signals: StopSignals | None = None  # of the caller, where this run is not the one that receives them
    captures: bool | None = None

    def __post_init__(self) -> None:
        self.gradients = Gradients(self.method, self.accelerator, self.scaler, self.say, self.captures)

    def load_inputs(self, config: LoopConfig, step: int) -> list[LossInputs]:
        """Return the inputs of this process's batches of a step, on the CPU."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        parts = [config.sample_indices(step, part, rank, processes) for part in range(config.accumulate)]
        return [self.method.inputs(self.photos.batch(indices)) for indices in parts]

    def checkpoint_state(self) -> CheckpointState:
        """Return what a checkpoint stores of it."""
        return CheckpointState(self.method.trainable_parameters(), self.optimizer, self.ema.values)


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the loop. A step trains on batch * accumulate * processes photos."""

    run: Path
    steps: int
    batch: int  # batch size of each process
    accumulate: int  # gradient accumulation: batches of each process in a step
    save_every: int
    lr: float  # the value of --lr, for messages
    lr_factor: Callable[[int], float]  # factor of the method's learning rates at a step
    identity: dict[str, object]  # must be equal for a run to be resumed
    milestones: tuple[int, ...] = ()  # steps with a validation, ascending; the last step is one in any case
    early_stop: bool = False  # whether the run may end at a milestone
    pivot_steps: int = 0  # the fixed batch's losses up to this step belong to another curve
    fixed_batch: Sequence[LossInputs] = ()  # in parts, on the device; its loss is measured in the main process
    measure_every: int = 1  # steps between these measurements
    usual_lr: float = math.inf  # the preset's, the highest that is proposed after divergence

    def is_milestone(self, step: int) -> bool:
        return step == self.steps or step in self.milestones

    def next_milestone(self, step: int) -> int:
        return next((milestone for milestone in self.milestones if milestone > step), self.steps)

    def sample_indices(self, step: int, part: int, rank: int, processes: int) -> range:
        """Return the sample indices of batch `part` of a step in process `rank`. They are counted over the whole run,
        so a step trains on the same photos however it is split into batches and processes."""
        first = ((step * self.accumulate + part) * processes + rank) * self.batch
        return range(first, first + self.batch)


class SharedTraining(Protocol):
    """What a run shares with others that are trained in the same batch (`joint.py`)."""

    base: StableDiffusion
    scorer: Scorer | None

    def join(self, state: TrainState) -> None:
        """Have its gradients computed with those of the others, and stop it with them."""


@dataclass(frozen=True)
class LoopHooks:
    """What the main process reports to and validates with; the other processes have neither log nor validator."""

    log: ProgressLog | None = None
    validator: Validator | None = None
    say: Callable[[str], None] = print
