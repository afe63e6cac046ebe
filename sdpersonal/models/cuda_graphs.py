"""Capture a function of fixed tensors as a CUDA graph once, and replay it with a single launch.

A step of Stable Diffusion launches thousands of small kernels; launching them one by one takes a CPU longer than a fast
card needs to compute them.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from .oom import release_cached_memory

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as Pool

_captured: weakref.WeakSet[CapturedCall] = weakref.WeakSet()
_WARM_UPS = 2  # calls before the capture: libraries allocate workspaces and choose kernels in the first ones


class CapturedCall:
    """A function without arguments that reads and writes fixed tensors, and returns tensors that replays overwrite.

    The function is called a few times to warm up and once to capture. It must neither wait for the device nor copy from
    pageable memory, and what it reads must stay where it is. On a CPU, where nothing can be captured, a replay calls
    the function, and its results go into the same tensors as on a card.

    pool: memory that graphs share, from `torch.cuda.graph_pool_handle`; only one of them may be replayed at a time.
    """

    def __init__(self, function: Callable[[], tuple[Tensor, ...]], device: torch.device, pool: Pool | None = None):
        self._graph: torch.cuda.CUDAGraph | None = None
        self._function: Callable[[], tuple[Tensor, ...]] | None = None
        self.num_bytes = 0  # memory that only this graph, and those with the same pool, can use
        if device.type != "cuda":
            self._function, self.results = function, function()
            return
        with torch.cuda.device(device):  # torch captures on the current one, which need not be the model's
            _warm_up(function, device)
            release_cached_memory(device)  # so that what is reserved from here on is the graph's
            before = torch.cuda.memory_reserved(device)
            self._graph, self.results = _capture(function, device, pool)
            self.num_bytes = max(0, torch.cuda.memory_reserved(device) - before)
            self._graph.replay()  # capturing computes nothing
        _captured.add(self)

    def replay(self) -> tuple[Tensor, ...]:
        """Call the function on what its tensors hold now; return `results`."""
        if self._graph:
            self._graph.replay()
        elif self._function:
            for result, value in zip(self.results, self._function(), strict=True):
                result.copy_(value)
        return self.results


def _warm_up(function: Callable[[], object], device: torch.device) -> None:
    stream, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            function()
    stream.wait_stream(side)


def _capture(
    function: Callable[[], tuple[Tensor, ...]], device: torch.device, pool: Pool | None
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph, pool, _capture_stream(stream.device), capture_error_mode=_error_mode()):
            return graph, function()
    except RuntimeError:
        _end_failed_capture(stream, pool)
        raise


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream to capture on. torch's own belongs to the device of its first capture: kernels of another
    device would not be captured, and a replay would compute nothing."""
    return torch.cuda.Stream(device)


def _error_mode() -> str:
    """Return what else may not happen on the card meanwhile: with gradients, anything that cannot be captured; without,
    only in this thread, since an app may load a model in another."""
    return "global" if torch.is_grad_enabled() else "thread_local"


def _end_failed_capture(stream: torch.cuda.Stream, pool: Pool | None) -> None:
    """Restore what torch leaves as it was in the capture: the current stream, where memory is allocated, and the
    generators, which a capture that works restores."""
    torch.cuda.set_stream(stream)
    with suppress(AttributeError, RuntimeError, TypeError):  # it was ended after all, or torch has changed
        torch._C._cuda_endAllocateToPool(stream.device_index, cast(tuple[int, int], pool))
    capture_stream = _capture_stream(stream.device)
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=capture_stream):
        torch.zeros(1, device=stream.device)
    torch.cuda.set_stream(stream)


def captured_bytes() -> int:
    """Return the bytes that torch has reserved for graphs: part of its cache, but no other tensor gets them."""
    return sum(call.num_bytes for call in _captured)
