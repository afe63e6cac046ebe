"""Hold what a loss is computed from: a batch as tensors only, its captions as token ids.

They are made on the CPU, ahead of the step that uses them, so that the step itself is a function of tensors of fixed
shapes: it never waits for the device, and can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from ..models import StableDiffusion, to_device
from .dataset import Batch, CaptionSplitter

T = TypeVar("T")

_AHEAD = 2  # steps whose inputs are made while the device computes


@dataclass(frozen=True)
class LossInputs:
    """B samples, and the D captions that they have.

    prior: what the loss of prior preservation is computed from, if there is one.
    """

    latents: Tensor  # (B, C, h, w) fp32
    noise: Tensor  # (B, C, h, w) fp32
    t: Tensor  # (B,)
    time_ids: Tensor  # (B, 6) fp32
    tokens: Tensor  # (D, encoders, 2, 77), from `tokenize_captions`
    caption: Tensor  # (B,): the index in `tokens`
    prior: LossInputs | None = None

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in the same order for inputs of one kind."""
        own = [getattr(self, field.name) for field in fields(self) if field.name != "prior"]
        return own + (self.prior.tensors() if self.prior else [])

    def map(self, function: Callable[[Tensor], Tensor]) -> LossInputs:
        """Apply a function to every tensor."""
        mapped = {field.name: function(getattr(self, field.name)) for field in fields(self) if field.name != "prior"}
        return LossInputs(**mapped, prior=self.prior.map(function) if self.prior else None)

    def to(self, device: torch.device) -> LossInputs:
        """Copy to a device, without waiting for what that still computes."""
        return self.map(lambda tensor: tensor if tensor.device == device else to_device(tensor, device))

    def copy_(self, other: LossInputs) -> None:
        """Overwrite the tensors with those of inputs of the same shapes, without waiting for the device."""
        for target, source in zip(self.tensors(), other.tensors(), strict=True):
            # A copy from pageable memory waits, whatever `non_blocking` says; here, since pinning in the thread that
            # makes the inputs would end a capture of this thread.
            pinned = source.pin_memory() if target.is_cuda and not source.is_cuda else source
            target.copy_(pinned, non_blocking=True)

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        return tuple(tensor.shape for tensor in self.tensors())


class CaptionTokenizer:
    """Tokenizes captions for a base, each once. split: how the subject is written in them."""

    def __init__(self, base: StableDiffusion, split: CaptionSplitter):
        self._base, self._split = base, split
        self._tokens: dict[str, Tensor] = {}

    def inputs(self, batch: Batch, prior: LossInputs | None = None) -> LossInputs:
        """Return a batch as tensors, on the CPU."""
        # A caption that is repeated is encoded once: with four samples and eight templates that saves a sixth of the
        # text encoder's work. On a card it is 2 % of a step, and inputs of one shape can be captured in a graph.
        repeats = self._base.device.type == "cuda"
        captions = list(batch.captions) if repeats else list(dict.fromkeys(batch.captions))
        caption = range(len(captions)) if repeats else [captions.index(text) for text in batch.captions]
        time_ids = torch.tensor([size.time_ids for size in batch.size_conditioning], dtype=torch.float32)
        tokens = torch.cat([self._tokens_of(text) for text in captions])
        return LossInputs(batch.latents, batch.noise, batch.t, time_ids, tokens, torch.tensor(caption), prior)

    def _tokens_of(self, caption: str) -> Tensor:
        if caption not in self._tokens:
            self._tokens[caption] = self._base.tokenize_captions([self._split(caption)])
        return self._tokens[caption]


def prefetch(load: Callable[[int], T], steps: Sequence[int], device: torch.device) -> Generator[T, None, None]:
    """Yield load(step) for each step; on a card, `load` runs some steps ahead in a thread of its own."""
    if device.type != "cuda":
        yield from map(load, steps)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, "prefetch") as executor:
        try:
            for i in range(len(steps)):
                waiting.extend(executor.submit(load, later) for later in steps[i + len(waiting) : i + 1 + _AHEAD])
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
