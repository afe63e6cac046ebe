"""Stop a run when its loss has converged: DVAR (Voronov et al. 2023, arXiv 2302.04841, section 4).

Single losses mostly depend on the noise that was sampled. Measured repeatedly on one fixed batch (same photos, noise,
timesteps and captions), the loss is a smooth curve, which falls fast and then hardly. DVAR stops where the variance of
its last values is a small share of the variance of all: what is still gained is little beside what was gained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .dataset import Batch, PhotoDataset
from .loss_inputs import LossInputs
from .methods.protocol import Method

FIXED_BATCH_SIZE = 8  # samples in the fixed batch
# Shares of the noise levels; the loss in the last fifth only tells whether a photo's background was guessed.
_FIRST_LEVEL, _LAST_LEVEL = 0.025, 0.8
_MEASUREMENTS = 40  # over a whole schedule
WINDOW = 8  # the last measurements that are compared with all: a fifth of the schedule
DVAR_THRESHOLD = 0.1  # of the variance of all


@dataclass(frozen=True)
class DvarPoint:
    """The DVAR value at a step: the variance of the window as a share of the variance of all losses."""

    step: int
    variance_ratio: float

    @property
    def converged(self) -> bool:
        return self.variance_ratio < DVAR_THRESHOLD


def measure_interval(steps: int, usual: int) -> int:
    """Return the steps between measurements. Short runs are measured at the preset's interval: the loss does not
    flatten earlier because fewer steps were requested."""
    return max(1, max(steps, usual) // _MEASUREMENTS)


def can_converge(steps: int, every: int) -> bool:
    """Return whether there will be enough measurements before the last step."""
    return steps > (WINDOW + 1) * every


def fixed_batch(photos: PhotoDataset) -> Batch:
    """Build the fixed batch: photos in turn, at evenly spread noise levels."""
    batch = photos.batch(range(FIXED_BATCH_SIZE))
    levels = torch.linspace(_FIRST_LEVEL, _LAST_LEVEL, FIXED_BATCH_SIZE) * photos.levels
    return replace(batch, t=levels.long())


def fixed_inputs(method: Method, photos: PhotoDataset, at_once: int, device: torch.device) -> list[LossInputs]:
    """Return the fixed batch in parts on the device. at_once: samples in a part; up to the training's batch size, no
    more memory is needed than for a step."""
    return [method.inputs(part).to(device) for part in fixed_batch(photos).split(at_once)]


def fixed_batch_loss(loss: Callable[[LossInputs, int], Tensor], parts: Sequence[LossInputs], step: int) -> Tensor:
    """Compute the mean loss of the fixed batch, a scalar on the device. loss: per sample, without gradients."""
    return torch.cat([loss(part, step) for part in parts]).mean()


def dvar(measured: Sequence[tuple[int, float]], start: int = 0) -> list[DvarPoint]:
    """Compute DVAR after each measurement of (step, loss). start: values up to that step belong to another curve, such
    as a pivotal run's before its LoRA."""
    steps = [step for step, _ in measured if step > start]
    losses = np.array([loss for step, loss in measured if step > start])
    points = []
    for count in range(WINDOW + 1, len(losses) + 1):
        measured_losses = losses[:count]
        # The variance of equal numbers is not always 0: their mean is rounded.
        share = (
            0.0
            if measured_losses.min() == measured_losses.max()
            else float(measured_losses[-WINDOW:].var() / measured_losses.var())
        )
        points.append(DvarPoint(steps[count - 1], share))
    return points
