"""Keep fixed buffers on a CUDA card for the LoRAs of a mix, and copies of the concepts that were used last.

A CUDA graph reads the addresses that it was captured with. So a layer's matrices are copied into buffers of a few
ranks, padded with zeros, which add nothing: another concept, strength or window only writes other numbers to the same
addresses. Concepts stay on the card for a while, so that a change of a strength copies nothing from the host, and the
layers are copied together, since a kernel for each would take longer than the copying.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..concepts.concept import Lora, LoraLayer
from ..concepts.layer_changes import Change
from .lora_groups import Factors

LoraPart = LoraLayer | Change
AnyLayer = nn.Linear | nn.Conv2d
StoredPart = tuple[LoraPart, LoraLayer, AnyLayer]
"""A part of a LoRA, the LoRA that it equals, and the layer that it belongs to."""

_SMALLEST_BUCKET = 8  # rank; 8 numbers of 16 bits are the 16 bytes that tensor cores read at once
_BUCKET_STEP = 128  # above this rank, buckets are its multiples
_STORED_BYTES = 1 << 30  # of concepts on the card
_STORED_SHARE = 0.05  # of the card's memory: the same for a small card
_BUFFERS_BYTES = 2 << 30  # of buffers, in use or not
_BUFFERS_SHARE = 0.1  # of the card's memory: the same for a small card
_STAGING_BYTES = 32 << 20  # copied from the host at once: torch keeps pinned memory


def bucket_of(rank: int) -> int:
    """Return the rank of the buffer for matrices of this rank: the next power of 2, or multiple of 128 above that."""
    if rank > _BUCKET_STEP:
        return -(-rank // _BUCKET_STEP) * _BUCKET_STEP
    return max(_SMALLEST_BUCKET, 1 << (rank - 1).bit_length())


@dataclass(frozen=True)
class StoredFactors:
    """A LoRA of one layer on the card.

    down: (r, in) or (r, in, k, k) in the model's dtype; up: fp32, (r, out) of a linear layer, (out, r) of a
    convolution; scale: alpha / r.
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass
class _StoredLora:
    lora: Lora  # keeps its parts alive, by whose ids `factors` are found
    dtype: torch.dtype  # of A
    factors: dict[int, StoredFactors] = field(default_factory=dict)
    num_bytes: int = 0


class _Buffer:
    """The matrices of one layer, of which the first `used` rows of `down` are in use; all others are zero."""

    def __init__(self, layer: AnyLayer, rank: int, device: torch.device):
        weight = layer.weight
        self.used, self._rank_dim = 0, 0 if isinstance(layer, nn.Linear) else 1
        self.down = torch.zeros(rank, *weight.shape[1:], dtype=weight.dtype, device=device)
        shape = (rank, len(weight)) if isinstance(layer, nn.Linear) else (len(weight), rank)
        self._up = torch.zeros(shape, dtype=weight.dtype, device=device)
        # A linear layer's is stored transposed: the part of a concept is then contiguous.
        self.factors: Factors = self.down, self._up.t() if isinstance(layer, nn.Linear) else self._up

    def part(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the views of these rows of A and columns of B."""
        return self.down.narrow(0, first, count), self._up.narrow(self._rank_dim, first, count)

    @property
    def num_bytes(self) -> int:
        return self.down.nbytes + self._up.nbytes


@dataclass
class _Copies:
    """Copies that are made together."""

    zeros: list[Tensor] = field(default_factory=list)
    downs: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # target, source
    ups: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)  # of `ups`


_BufferKey = tuple[nn.Module, int, int, torch.dtype]
"""A layer, its slot, the buffer's rank, and the layer's dtype."""


class LoraBuffers:
    """Buffers by layer, slot and rank; slots tell apart the mixes that a layer has at the same time.

    Usage: `store` the LoRAs of a mix, `fill` each layer's buffer, then `flush`.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stored: OrderedDict[int, _StoredLora] = OrderedDict()  # by id of the Lora; last used last
        self._factors: dict[int, StoredFactors] = {}  # by id of the Lora's part
        self._buffers: OrderedDict[_BufferKey, _Buffer] = OrderedDict()  # filled last, last
        self._filled: set[_BufferKey] = set()  # since the last `flush`
        self._copies = _Copies()
        self._limit, self._buffers_limit = _STORED_BYTES, _BUFFERS_BYTES
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            self._limit = min(self._limit, int(_STORED_SHARE * memory))
            self._buffers_limit = min(self._buffers_limit, int(_BUFFERS_SHARE * memory))

    @property
    def stored_bytes(self) -> int:
        """The bytes of the concepts on the card."""
        return sum(stored.num_bytes for stored in self._stored.values())

    @property
    def buffer_bytes(self) -> int:
        return sum(buffer.num_bytes for buffer in self._buffers.values())

    def has(self, lora: Lora, dtype: torch.dtype) -> bool:
        """Return whether a LoRA is on the card for a model of this dtype; it then counts as used."""
        stored = self._stored.get(id(lora))
        if stored is None or stored.dtype != dtype:
            return False
        self._stored.move_to_end(id(lora))
        return True

    def store(
        self,
        lora: Lora,
        parts: Iterable[StoredPart],
        dtype: torch.dtype,
        in_use: Iterable[Lora],
    ) -> None:
        """Copy a LoRA to the card, and drop those that were used longest ago, but none of the mix `in_use`."""
        stored = _StoredLora(lora, dtype)
        for batch in _batches(parts):
            downs, ups = _upload(batch, self._device, dtype)
            for (part, matrices, _), down, up in zip(batch, downs, ups, strict=True):
                stored.factors[id(part)] = StoredFactors(down, up, matrices.alpha / matrices.rank)
                stored.num_bytes += down.nbytes + up.nbytes
        self._stored[id(lora)] = stored
        self._stored.move_to_end(id(lora))
        needed = {id(other) for other in in_use}
        for key in [key for key in self._stored if key not in needed]:
            if self.stored_bytes <= self._limit:
                break
            del self._stored[key]
        self._factors = {}  # from all that are left: LoRAs may share parts
        for stored in self._stored.values():
            self._factors |= stored.factors

    def split(
        self, parts: Iterable[tuple[LoraPart, float]]
    ) -> tuple[list[tuple[StoredFactors, float]], list[tuple[Change, float]]]:
        """Split what changes a layer into LoRAs on the card and other changes."""
        factors: list[tuple[StoredFactors, float]] = []
        changes: list[tuple[Change, float]] = []
        for part, strength in parts:
            if stored := self._factors.get(id(part)):
                factors.append((stored, strength))
            elif not isinstance(part, LoraLayer):
                changes.append((part, strength))
        return factors, changes

    def fill(self, layer: AnyLayer, slot: int, factors: Sequence[tuple[StoredFactors, float]]) -> Factors:
        """Return a layer's A and B, which `flush` fills with these LoRAs, one after the other."""
        rank = sum(part.rank for part, _ in factors)
        key = layer, slot, bucket_of(rank), layer.weight.dtype
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = _Buffer(layer, bucket_of(rank), self._device)
        self._buffers.move_to_end(key)
        self._filled.add(key)
        copies, first = self._copies, 0
        if rank < buffer.used:
            copies.zeros += buffer.part(rank, buffer.used - rank)
        for part, strength in factors:
            down, up = buffer.part(first, part.rank)
            copies.downs.append((down, part.down))
            copies.ups.append((up, part.up))
            copies.scales.append(strength * part.scale)
            first += part.rank
        buffer.used = rank
        return buffer.factors

    @torch.no_grad()
    def flush(self) -> None:
        """Make all copies of `fill`. What was not filled since the last time is not in use any more."""
        self._drop_buffers()
        copies, self._copies = self._copies, _Copies()
        if copies.zeros:
            torch._foreach_zero_(copies.zeros)
        if copies.downs:
            torch._foreach_copy_([target for target, _ in copies.downs], [source for _, source in copies.downs])
            scaled = torch._foreach_mul([source for _, source in copies.ups], copies.scales)
            torch._foreach_copy_([target for target, _ in copies.ups], scaled)

    def _drop_buffers(self) -> None:
        """Drop buffers that were filled longest ago, but none in use, while all take too much memory: there is one of
        each rank and slot that was ever used. A CUDA graph that reads one has the address in its key."""
        filled, self._filled = self._filled, set()
        excess = self.buffer_bytes - self._buffers_limit
        for key in [key for key in self._buffers if key not in filled]:
            if excess <= 0:
                return
            excess -= self._buffers.pop(key).num_bytes


def _batches(parts: Iterable[StoredPart]) -> Iterator[list[StoredPart]]:
    batch: list[StoredPart] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += 4 * (part[1].down.size + part[1].up.size)
        if size >= _STAGING_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _upload(parts: Sequence[StoredPart], device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Copy A and B of these parts to the device in one transfer, which is not waited for: see `StoredFactors`."""
    downs = [matrices.down for _, matrices, _ in parts]
    ups = [_up_as_stored(matrices, layer) for _, matrices, layer in parts]
    sizes = [array.size for array in (*downs, *ups)]
    staged = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=device.type == "cuda")
    target, first = staged.numpy(), 0
    for array in (*downs, *ups):
        target[first : first + array.size].reshape(array.shape)[...] = array
        first += array.size
    on_device = staged.to(device, non_blocking=True, copy=True)
    count = sum(sizes[: len(downs)])
    flat_downs, flat_ups = on_device[:count].to(dtype, copy=True), on_device[count:].clone()
    stored = [*flat_downs.split(sizes[: len(downs)]), *flat_ups.split(sizes[len(downs) :])]
    shapes = [(matrices.rank, *layer.weight.shape[1:]) for _, matrices, layer in parts] + [up.shape for up in ups]
    views = [tensor.view(shape) for tensor, shape in zip(stored, shapes, strict=True)]
    return views[: len(downs)], views[len(downs) :]


def _up_as_stored(matrices: LoraLayer, layer: AnyLayer) -> np.ndarray:
    up = matrices.up.reshape(matrices.up.shape[0], -1)
    return up.T if isinstance(layer, nn.Linear) else up
