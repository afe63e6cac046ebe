"""Print what a card would see of LoRA training steps, as JSON: python -m support.traced_steps KIND BATCH SIDE.

Run it with the library of `fake_cuda.compile_guard` in LD_PRELOAD. The loop is the project's own, `fit`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from benchmarks.card import own_step
from benchmarks.card.session import cast
from benchmarks.steps.geometry import build
from sdpersonal.models import fast_blocks, to_device
from sdpersonal.training import gradients, loop
from sdpersonal.training.control import NO_REQUEST
from sdpersonal.training.step_result import StepResult
from sdpersonal.training.train_state import LoopConfig, LoopHooks, TrainState
from support.fake_cuda import Trace, fake_card, fake_triton

ACCELERATOR = SimpleNamespace(
    device=torch.device("cuda"),
    num_processes=1,
    process_index=0,
    is_main_process=True,
    backward=lambda loss: loss.backward(),
)


class CountedGraph:
    """In place of `CapturedCall`: counts the kernels of the capture, and a replay as one launch."""

    kernels = 0

    def __init__(self, trace: Trace, function: Callable[[], tuple[Tensor, ...]]):
        self._trace, before = trace, trace.launches.total()
        self.results = function()
        CountedGraph.kernels = trace.launches.total() - before

    def replay(self) -> tuple[Tensor, ...]:
        self._trace.launches["graph"] += 1
        return self.results


def train_state(kind: str, batch: int, side: int) -> TrainState:
    with mock.patch.object(own_step, "init_distributed", lambda: ACCELERATOR):
        base = cast(build(kind, "cuda"), torch.bfloat16)
        state = own_step.train_state(base, own_step.settings_for("lora", batch), side)
    with _disable_current_modes():  # a thread of its own makes samples, and fake tensors are for one thread
        shape = (own_step.PHOTOS, 1, *base.latent_shape(side, side))
        state.photos._mean, state.photos._std = torch.zeros(shape), torch.ones(shape)
    return state


def take_steps(trace: Trace, state: TrainState, batch: int, count: int) -> dict[str, object]:
    """Take that many steps as a run does; return the launches of the last one, and the waits of all."""
    launches, before = [], trace.waits.copy()

    def begin_step(_: object) -> object:
        launches.append(trace.launches.copy())
        return NO_REQUEST

    first = state.step
    config = LoopConfig(Path("run"), first + count, batch, 1, 1 << 20, 1e-4, lambda step: 1.0, {})
    with (
        mock.patch.object(loop, "poll", begin_step),
        mock.patch.object(loop, "_save"),
        mock.patch.object(StepResult, "record", lambda *_: NO_REQUEST),  # it reads the step before
        mock.patch.object(gradients, "_check_memory"),
        mock.patch.object(gradients, "CapturedCall", lambda function, *_: CountedGraph(trace, function)),
    ):
        loop.fit(state, config, LoopHooks())
    last = trace.launches - launches[-1]
    return {"launches": last.total(), "waits": list((trace.waits - before).elements()), "by name": dict(last)}


def noticed_waits(trace: Trace) -> dict[str, int]:
    """Return how many waits are counted of lines of which the last two wait for nothing."""
    x, host, counts = torch.ones(4, device="cuda"), torch.ones(4), {}
    lines: dict[str, Callable[[], object]] = {
        "item": lambda: x.sum().item(),
        "if": lambda: bool(x.sum() > 0),
        "cpu": lambda: x.cpu(),
        "pageable": lambda: host.to("cuda", non_blocking=True),
        "pinned, but waits": lambda: host.pin_memory().to("cuda"),
        "copy_": lambda: x.copy_(host, non_blocking=True),
        "tensor": lambda: torch.tensor([1.0], device="cuda"),
        "list": lambda: x[[0, 1]],
        "to_device": lambda: to_device(host, x.device),
        "to cpu without waiting": lambda: x.to("cpu", non_blocking=True),
    }
    for name, line in lines.items():
        before = trace.waits.total()
        line()
        counts[name] = trace.waits.total() - before
    return counts


def main(kind: str, batch: int, side: int) -> None:
    with fake_card() as trace:
        fake_triton(trace)
        from sdpersonal.models import triton_kernels

        fast_blocks.find_kernels = lambda device: triton_kernels
        state = train_state(kind, batch, side)
        report: dict[str, object] = {"noticed": noticed_waits(trace), "replayed": take_steps(trace, state, batch, 2)}
        report["kernels"] = CountedGraph.kernels
        loss = state.method.loss
        state.gradients = gradients.Gradients(state.method, state.accelerator, state.scaler, captures=False)
        state.method.loss = lambda inputs, step: loss(inputs, step) * inputs.t.max().item()
        report["disturbed"] = take_steps(trace, state, batch, 1)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
