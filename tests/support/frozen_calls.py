"""CUDA graphs without a card: a call is recorded operation by operation, and replayed with the tensors it had then.

As in a graph, Python does not run again: hooks, branches and parameters that have changed since have no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class _Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self._computed: set[int] = set()  # ids of tensors, all of which are kept alive

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, tree_map(self._as_read, args), tree_map(self._as_read, kwargs or {}), out))
        self._computed |= {id(tensor) for tensor in _tensors(out)}
        return out

    def _as_read(self, value: Any) -> Any:
        """Return the memory that a tensor has now: a parameter may be given another by its `data`."""
        is_from_outside = isinstance(value, Tensor) and id(value) not in self._computed
        return value.detach() if is_from_outside else value


class FrozenCall:
    """In place of `CapturedCall`; counts all replays in `replays`."""

    replays = 0

    def __init__(self, function: Callable[[], tuple[Tensor, ...]], device: torch.device, pool: object = None):
        function()
        with _Recording() as recording:
            self.results = function()
        self._operations = recording.operations

    def replay(self) -> tuple[Tensor, ...]:
        FrozenCall.replays += 1
        computed: dict[int, Tensor] = {}  # by id of what it replaces; the recording keeps all of them alive

        def current(value: Any) -> Any:
            return computed.get(id(value), value) if isinstance(value, Tensor) else value

        for func, args, kwargs, recorded in self._operations:
            out = func(*tree_map(current, args), **tree_map(current, kwargs))
            for old, new in zip(_tensors(recorded), _tensors(out), strict=True):
                computed[id(old)] = new
        for result in self.results:
            result.copy_(computed[id(result)])
        return self.results


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []
