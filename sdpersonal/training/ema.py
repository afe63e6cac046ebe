"""Exponential moving average of the trained parameters; it is what is sampled, measured and saved (Polyak and Juditsky
1992; every diffusion model since Ho et al. 2020 uses one).

At a constant rate single steps fluctuate: on the built-in base the likeness of consecutive checkpoints differed by a
fifth. The average does not, so the rate can be twice as high, and half the steps suffice (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average, fp32. decay: 0.95 averages about the last twenty steps."""

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float):
        self._trained, self._decay = dict(trained), decay
        self.values = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update after step `step`, from 0. Early steps decay faster: the initial values are no step's result."""
        decay = min(self._decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.values.values()), list(self._trained.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the average into the trained parameters inside the block. Nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._trained.items():
            parameter.data, self.values[name] = self.values[name], parameter.data


class NoEMA:
    """No averaging: for methods whose trained parameters are too large for a second copy."""

    def __init__(self):
        self.values: dict[str, Tensor] = {}

    def update(self, step: int) -> None:
        pass

    @contextmanager
    def applied(self) -> Iterator[None]:
        yield
