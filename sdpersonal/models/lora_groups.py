"""LoRAs that act on some groups of a batch's rows only, so that different mixes are predicted in one batch.

A batch of R rows consists of G equal groups. A group's LoRAs in a layer, concatenated by rank as in `lora.py`, are
added to its own rows only: y_g = W x_g + B_g A_g x_g. A group with changes that are no LoRA of a small rank is computed
again with its own weight and bias.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from .unet_replay import Replayable, address

AnyLayer = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm


Factors = tuple[Tensor, Tensor]
"""LoRAs of a layer, concatenated: A (r, in) or (r, in, k, k), B (out, r)."""


class LayerGroups(Replayable):
    """The changes of one layer for groups of rows, from `attach` until `remove`.

    factors: for some groups, by index, their LoRAs; replaced: for others, the layer's weight and bias.
    """

    def __init__(
        self,
        layer: AnyLayer,
        num_groups: int,
        factors: Mapping[int, Factors],
        replaced: Mapping[int, tuple[Tensor, Tensor | None]],
    ):
        self._layer, self._num_groups = layer, num_groups
        self._factors, self._replaced = dict(factors), dict(replaced)
        self._hook: RemovableHandle | None = None

    def attach(self) -> None:
        """Change the layer's output, after all that changes it already."""
        self._hook = self._layer.register_forward_hook(self._change)

    def remove(self) -> None:
        if self._hook:
            self._hook.remove()

    def replay_key(self) -> Hashable:
        factors = ((group, *map(address, pair)) for group, pair in self._factors.items())
        replaced = ((group, *map(address, pair)) for group, pair in self._replaced.items())
        return self._layer, self._num_groups, tuple(factors), tuple(replaced)

    def _change(self, layer: AnyLayer, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        self._follow(x)
        rows, parts = x.chunk(self._num_groups), list(out.chunk(self._num_groups))
        for group, (down, up) in self._factors.items():
            _add(layer, rows[group], parts[group], down, up)
        if not self._replaced:
            return out  # its parts were changed in place
        for group, (weight, bias) in self._replaced.items():
            parts[group] = apply_layer(layer, rows[group], weight, bias)
        return torch.cat(parts)

    def _follow(self, x: Tensor) -> None:
        """Move its tensors to where x is: they may have been made while the model was offloaded."""
        for group, (down, up) in self._factors.items():
            if not _is_like(down, x):
                self._factors[group] = down.to(x), up.to(x)
        for group, (weight, bias) in self._replaced.items():
            if not _is_like(weight, x):
                self._replaced[group] = weight.to(x), None if bias is None else bias.to(x)


def _add(layer: AnyLayer, x: Tensor, out: Tensor, down: Tensor, up: Tensor) -> None:
    """Add B A x to the layer's output, in place: generation needs no gradients, and nothing else uses the output."""
    if isinstance(layer, nn.Linear):
        inner = F.linear(x, down)  # (R / G, ..., r)
        out.view(-1, out.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), up.t())
    elif isinstance(layer, nn.Conv2d):
        inner = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)  # (R / G, r, h, w)
        out.add_(F.conv2d(inner, up[:, :, None, None]))


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
