"""LoRAs that act on some groups of a batch's rows only, so that different mixes are predicted in one batch.

A batch of R rows consists of G equal groups. Of a layer's LoRAs, concatenated by rank as in `lora.py`, each rank is
multiplied by 0 or 1 for each group:

    y = W x + B (m_g * (A x))        m (G, r)

A group with changes that are no LoRA of a small rank is computed again with its own weight and bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

AnyLayer = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm


@dataclass(frozen=True)
class GroupFactors:
    """LoRAs of a layer: down (r, in) or (r, in, k, k), up (out, r), mask (G, r)."""

    down: Tensor
    up: Tensor
    mask: Tensor

    def to(self, x: Tensor) -> GroupFactors:
        """Return the same in the dtype and on the device of x."""
        return GroupFactors(*(tensor.to(x.device, x.dtype) for tensor in (self.down, self.up, self.mask)))


class LayerGroups:
    """The changes of one layer for groups of rows, from `attach` until `remove`.

    replaced: for some groups, by index, the layer's weight and bias.
    """

    def __init__(
        self,
        layer: AnyLayer,
        num_groups: int,
        factors: GroupFactors | None,
        replaced: Mapping[int, tuple[Tensor, Tensor | None]],
    ):
        self._layer, self._num_groups, self._factors, self._replaced = layer, num_groups, factors, dict(replaced)
        self._hook: RemovableHandle | None = None

    def attach(self) -> None:
        """Change the layer's output, after all that changes it already."""
        self._hook = self._layer.register_forward_hook(self._change)

    def remove(self) -> None:
        if self._hook:
            self._hook.remove()

    def _change(self, layer: AnyLayer, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        self._follow(x)
        if self._factors is not None and not isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            out = out + self._added(layer, x, self._factors)
        if self._replaced:
            parts = list(out.chunk(self._num_groups))
            rows = x.chunk(self._num_groups)
            for group, (weight, bias) in self._replaced.items():
                parts[group] = apply_layer(layer, rows[group], weight, bias)
            out = torch.cat(parts)
        return out

    def _follow(self, x: Tensor) -> None:
        """Move its tensors to where x is: they may have been made while the model was offloaded."""
        if self._factors is not None and not _is_like(self._factors.down, x):
            self._factors = self._factors.to(x)
        for group, (weight, bias) in self._replaced.items():
            if not _is_like(weight, x):
                self._replaced[group] = weight.to(x), None if bias is None else bias.to(x)

    def _added(self, layer: nn.Linear | nn.Conv2d, x: Tensor, factors: GroupFactors) -> Tensor:
        """Compute B (m_g * (A x)) for all rows."""
        if isinstance(layer, nn.Linear):
            inner = F.linear(x, factors.down)  # (R, ..., r)
            grouped = inner.view(self._num_groups, -1, inner.shape[-1]) * factors.mask[:, None]
            return F.linear(grouped.view(inner.shape), factors.up)
        inner = F.conv2d(x, factors.down, None, layer.stride, layer.padding, layer.dilation)  # (R, r, h, w)
        mask = factors.mask.repeat_interleave(len(inner) // self._num_groups, dim=0)
        return F.conv2d(inner * mask[:, :, None, None], factors.up[:, :, None, None])


def _is_like(tensor: Tensor, x: Tensor) -> bool:
    return tensor.device == x.device and tensor.dtype == x.dtype


def apply_layer(layer: AnyLayer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the layer's output with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
