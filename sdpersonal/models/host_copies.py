"""Keep pinned copies in main memory of models that leave the card and come back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from .oom import is_out_of_memory

_BLOCK_BYTES = 256 << 20  # torch rounds pinned memory up to a power of two: weights are packed into blocks of this size
_ALIGNMENT = 256  # bytes


@dataclass
class _Copy:
    """A weight's copy in main memory.

    storage, version: of the weight when it was last equal to the copy. The reference is weak, so that it keeps no
    memory on the card, yet no other storage can be mistaken for this one.
    """

    tensor: Tensor
    storage: StorageWeakRef
    version: int


class HostCopies:
    """Moves a model between a device and main memory, where a copy of its weights stays from the first time on.

    Leaving the device then frees memory there and copies nothing, and coming back reads pinned memory, at the full
    speed of the bus. It is meant for frozen weights, but others are safe: a weight that was changed, cast or replaced
    since it was placed (by training, or by a concept that brings its own biases) is copied anew.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self._model, self._device = model, device
        # By weight; those that are replaced drop out by themselves.
        self._copies: MutableMapping[Tensor, _Copy] = WeakTensorKeyDictionary()

    def to_device(self) -> None:
        """Move the model to the device. If memory is short there, it is in main memory after the error."""
        weights = self._updated_weights()
        try:
            for weight in weights:
                self._place(weight, self._copies[weight].tensor.to(self._device, non_blocking=True, copy=True))
        except BaseException:
            self.to_host()
            raise

    def to_host(self) -> None:
        """Move the model to main memory."""
        for weight in self._updated_weights():
            self._place(weight, self._copies[weight].tensor)

    def _updated_weights(self) -> list[Tensor]:
        """Return the model's parameters and buffers, each of which has an equal copy now."""
        weights = [*self._model.parameters(), *self._model.buffers()]
        changed = [weight for weight in weights if not self._is_equal(weight)]
        unknown = [weight for weight in changed if not self._fits(weight)]
        for weight, tensor in zip(unknown, _allocate(unknown, self._device.type == "cuda"), strict=True):
            self._copies[weight] = _Copy(tensor, *_state(weight))
        for weight in changed:
            self._copies[weight].tensor.copy_(weight.detach())
            self._record(weight)
        return weights

    def _is_equal(self, weight: Tensor) -> bool:
        copy = self._copies.get(weight)
        return copy is not None and not weight.requires_grad and (copy.storage, copy.version) == _state(weight)

    def _fits(self, weight: Tensor) -> bool:
        """Return whether its copy is laid out as this weight, whose dtype or memory format may have changed."""
        copy = self._copies.get(weight)
        if copy is None or copy.tensor.dtype != weight.dtype or copy.tensor.shape != weight.shape:
            return False
        return copy.tensor.stride() == _dense_strides(weight)

    def _place(self, weight: Tensor, value: Tensor) -> None:
        weight.data = value
        self._record(weight)

    def _record(self, weight: Tensor) -> None:
        """Record that the copy of this weight equals it."""
        copy = self._copies[weight]
        copy.storage, copy.version = _state(weight)


def _state(weight: Tensor) -> tuple[StorageWeakRef, int]:
    """Return what changes whenever a weight does: its storage, and the number of changes in place."""
    return StorageWeakRef(weight.untyped_storage()), 0 if weight.is_inference() else weight._version


def _allocate(weights: Sequence[Tensor], pinned: bool) -> Iterator[Tensor]:
    """Yield an uninitialised tensor in main memory for each weight, laid out as it is."""
    for block in _pack([_aligned_bytes(weight) for weight in weights]):
        memory = _allocate_bytes(sum(_aligned_bytes(weights[i]) for i in block), pinned)
        ends = itertools.accumulate(_aligned_bytes(weights[i]) for i in block)
        for i, end in zip(block, ends, strict=True):
            weight, start = weights[i], end - _aligned_bytes(weights[i])
            flat = memory[start : start + weight.numel() * weight.element_size()].view(weight.dtype)
            yield flat.as_strided(weight.shape, _dense_strides(weight))


def _dense_strides(weight: Tensor) -> tuple[int, ...]:
    """Return a weight's strides, or dense ones for a slice of a larger tensor."""
    return torch.empty_like(weight, device="meta").stride()


def _pack(sizes: Sequence[int]) -> list[list[int]]:
    """Divide the indices of sizes, in order, into blocks of at most `_BLOCK_BYTES`, or of one."""
    blocks: list[list[int]] = []
    free = 0
    for i, size in enumerate(sizes):
        if size > free:
            blocks.append([])
            free = _BLOCK_BYTES
        blocks[-1].append(i)
        free -= size
    return blocks


def _aligned_bytes(weight: Tensor) -> int:
    return -(-weight.numel() * weight.element_size() // _ALIGNMENT) * _ALIGNMENT


def _allocate_bytes(size: int, pinned: bool) -> Tensor:
    """Allocate pinned memory, or pageable memory where the system pins no more."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:
        if not (pinned and is_out_of_memory(error)):
            raise
    return torch.empty(size, dtype=torch.uint8)
