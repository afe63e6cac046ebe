"""The average of what trains over its last steps: what is drawn, measured and kept (Polyak and Juditsky 1992; every
diffusion model since Ho et al. 2020 is one).

At a constant rate single steps jump about: on the built-in base the likeness of one checkpoint and of the next differed
by a fifth. The average does not, so the rate can be twice as high, and half the steps do (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average, fp32. decay: 0.95 is about the last twenty steps."""

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float):
        self._trained, self._decay = dict(trained), decay
        self.values = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Step number `step`, from 0, is done. The first ones forget the start sooner: it was no step's result."""
        decay = min(self._decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.values.values()), list(self._trained.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average stands in what trains, inside the block. Nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._trained.items():
            parameter.data, self.values[name] = self.values[name], parameter.data


class NoEMA:
    """Every step's result as it is: where a second copy of what trains is too much."""

    def __init__(self):
        self.values: dict[str, Tensor] = {}

    def update(self, step: int) -> None:
        pass

    @contextmanager
    def applied(self) -> Iterator[None]:
        yield
