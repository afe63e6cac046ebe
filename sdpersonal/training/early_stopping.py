"""When there is no more to learn: DVAR (Voronov et al. 2023, arXiv 2302.04841, section 4).

Single losses mostly tell which noise was drawn. Measured again and again on one fixed batch (same photos, noise, times
and captions) the loss is a smooth curve, which falls fast and then hardly. DVAR stops where the variance of its last
values is a small share of the variance of all: what is still gained is little beside what was gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .dataset import Batch, PhotoDataset
from .methods.protocol import Method

FIXED_BATCH_SIZE = 8  # samples in the fixed batch
_FIRST_LEVEL, _LAST_LEVEL = (
    0.025,
    0.8,
)  # of the noise levels; the last fifth says only which photo's background was guessed
_MEASUREMENTS = 40  # over a whole schedule
WINDOW = 8  # of them are the last values: a fifth of the schedule
DVAR_THRESHOLD = 0.1  # of the variance


@dataclass(frozen=True)
class DvarPoint:
    """What the rule saw at a step: the window's variance as a share of all, if there were values enough."""

    step: int
    share: float

    @property
    def converged(self) -> bool:
        return self.share < DVAR_THRESHOLD


def measure_interval(steps: int, usual: int) -> int:
    """Steps between measurements. A run of fewer than the usual steps is not judged the sooner for it: the curve of
    its first steps bends no earlier."""
    return max(1, max(steps, usual) // _MEASUREMENTS)


def can_converge(steps: int, every: int) -> bool:
    """Whether the rule will have values enough before the last step."""
    return steps > (WINDOW + 1) * every


def fixed_batch(photos: PhotoDataset) -> Batch:
    """Photos in turn, at noise levels spread evenly."""
    batch = photos.samples(range(FIXED_BATCH_SIZE))
    levels = torch.linspace(_FIRST_LEVEL, _LAST_LEVEL, FIXED_BATCH_SIZE) * photos.levels
    return replace(batch, t=levels.long().to(batch.t.device))


@torch.no_grad()
def fixed_batch_loss(method: Method, batch: Batch, step: int, at_once: int = FIXED_BATCH_SIZE) -> Tensor:
    """The mean loss of the fixed batch, a scalar on the device. at_once: samples; no more than a training step has, and
    it takes no memory that the step did not."""
    return torch.cat([method.loss(part, step) for part in batch.parts(at_once)]).mean()


def dvar(measured: Sequence[tuple[int, float]], start: int = 0) -> list[DvarPoint]:
    """The rule's view after each measurement of (step, loss). start: values up to that step are another curve's, as a
    pivotal run's before its LoRA."""
    steps = [step for step, _ in measured if step > start]
    losses = np.array([loss for step, loss in measured if step > start])
    found = []
    for count in range(WINDOW + 1, len(losses) + 1):
        seen = losses[:count]
        # Of equal numbers a variance is not always 0: their mean is rounded.
        share = 0.0 if seen.min() == seen.max() else float(seen[-WINDOW:].var() / seen.var())
        found.append(DvarPoint(steps[count - 1], share))
    return found
