"""Apply LoRAs to some groups of a batch's rows only, so that different mixes are predicted in one batch.

A batch of R rows consists of G equal groups. A group's LoRAs in a layer, concatenated by rank as in `lora.py`, are
added to its own rows only: y_g = W x_g + B_g A_g x_g. Of many groups, all A_g and all B_g are each one product of
batches of matrices, padded with zeros to the largest rank, as servers of many LoRAs do (S-LoRA, Sheng et al. 2023,
arXiv 2311.03285; Punica, Chen et al. 2023, arXiv 2310.18547). A group with changes that are no LoRA of a small rank is
computed again with its own weight and bias.
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

    factors: for some groups, by index, their LoRAs; replaced: for others, the layer's weight and bias; may_stack:
    whether the LoRAs may be copied into one tensor for all groups. Those in buffers may not: what a CUDA graph reads
    must stay where it is. may_merge: whether a LoRA of all rows may be merged into a copy of the weight, which nothing
    else replaces meanwhile.
    """

    def __init__(
        self,
        layer: AnyLayer,
        num_groups: int,
        factors: Mapping[int, Factors],
        replaced: Mapping[int, tuple[Tensor, Tensor | None]],
        may_stack: bool = False,
        may_merge: bool = False,
    ):
        self._layer, self.num_groups = layer, num_groups
        self.num_used = num_groups  # of these, counted from the first: a batch consists of their rows
        self._factors, self._replaced = dict(factors), dict(replaced)
        self._may_stack = may_stack and 2 * len(factors) > num_groups > 2  # zeros for the others would cost more
        self._stack: Factors | None = None
        self._may_merge = may_merge
        self._merged: nn.Parameter | None = None  # the weight with the LoRA of the first groups
        self._bare: Tensor | None = None  # the layer's own weight while the merged one is in its place
        self._hook: RemovableHandle | None = None

    def attach(self) -> None:
        """Change the layer's output, after all that changes it already."""
        self._hook = self._layer.register_forward_hook(self._change)

    def remove(self) -> None:
        self._restore()
        if self._hook:
            self._hook.remove()

    def use_first(self, count: int) -> None:
        """Expect the rows of the first groups only. If they have one LoRA, it is merged, in a third less time."""
        self._restore()
        self.num_used = min(count, self.num_groups)
        if not self._may_merge or self._replaced or self.num_used == self.num_groups:
            return
        used = [self._factors.get(group) for group in range(self.num_used)]
        if used[0] is None or any(factors is not used[0] for factors in used):
            return
        weight = self._layer.weight
        if self._merged is None:
            down, up = (matrix.to(weight).flatten(1) for matrix in used[0])
            merged = torch.addmm(weight.detach().flatten(1), up, down).view_as(weight)
            self._merged = nn.Parameter(merged, requires_grad=False)
        self._layer.weight, self._bare = self._merged, weight

    def _restore(self) -> None:
        if self._bare is not None:
            self._layer.weight, self._bare = self._bare, None

    def replay_key(self) -> Hashable:
        factors = ((group, *map(address, pair)) for group, pair in self._factors.items())
        replaced = ((group, *map(address, pair)) for group, pair in self._replaced.items())
        return self._layer, self.num_used, tuple(factors), tuple(replaced)

    def _change(self, layer: AnyLayer, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        if self._bare is not None:
            return out
        self._follow(x)
        self._add_factors(layer, x, out)
        replaced = {group: pair for group, pair in self._replaced.items() if group < self.num_used}
        if not replaced:
            return out
        rows, parts = x.chunk(self.num_used), list(out.chunk(self.num_used))
        for group, (weight, bias) in replaced.items():
            parts[group] = apply_layer(layer, rows[group], weight, bias)
        return torch.cat(parts)

    def _add_factors(self, layer: AnyLayer, x: Tensor, out: Tensor) -> None:
        """Add the LoRAs to the output, in place: generation needs no gradients, and nothing else uses the output."""
        if self._may_stack and self.num_used > 2 and not isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            self._stack = self._stack or stack_factors(self._factors, self.num_groups)
            out.add_(grouped_lora(layer, x, *(matrices[: self.num_used] for matrices in self._stack)))
        elif self._factors:
            rows, parts = x.chunk(self.num_used), out.chunk(self.num_used)
            for group, (down, up) in self._factors.items():
                if group < self.num_used:
                    _add(layer, rows[group], parts[group], down, up)

    def _follow(self, x: Tensor) -> None:
        """Move its tensors to where x is: they may have been made while the model was offloaded."""
        for group, (down, up) in self._factors.items():
            if not _is_like(down, x):
                self._factors[group] = down.to(x), up.to(x)
                self._stack = None
        for group, (weight, bias) in self._replaced.items():
            if not _is_like(weight, x):
                self._replaced[group] = weight.to(x), None if bias is None else bias.to(x)


def _add(layer: AnyLayer, x: Tensor, out: Tensor, down: Tensor, up: Tensor) -> None:
    """Add B A x to the layer's output, in place."""
    if isinstance(layer, nn.Linear):
        inner = F.linear(x, down)  # (R / G, ..., r)
        out.view(-1, out.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), up.t())
    elif isinstance(layer, nn.Conv2d):
        inner = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)  # (R / G, r, h, w)
        out.add_(F.conv2d(inner, up[:, :, None, None]))


def stack_factors(factors: Mapping[int, Factors], num_groups: int) -> Factors:
    """Return the LoRAs of all groups as A (G, r, in) or (G, r, in, k, k), and B (G, out, r); r is the largest rank.

    Groups without one have zeros.
    """
    rank = max(down.shape[0] for down, _ in factors.values())
    down, up = next(iter(factors.values()))
    downs = down.new_zeros(num_groups, rank, *down.shape[1:])
    ups = up.new_zeros(num_groups, up.shape[0], rank)
    for group, (down, up) in factors.items():
        downs[group, : down.shape[0]] = down
        ups[group, :, : down.shape[0]] = up.flatten(1)
    return downs, ups


def grouped_lora(layer: nn.Linear | nn.Conv2d, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return B_g A_g x_g of every group g of rows, of the shape of the layer's output; differentiable.

    down, up: as of `stack_factors`.
    """
    groups = len(down)
    if isinstance(layer, nn.Linear):
        inner = torch.bmm(x.reshape(groups, -1, x.shape[-1]), down.transpose(1, 2))  # (G, R / G ..., r)
        return torch.bmm(inner, up.transpose(1, 2)).view(*x.shape[:-1], -1)
    by_group = x.unflatten(0, (groups, -1))  # (G, n, in, h, w)
    # A grouped convolution takes a third of the time of one for each group, on a CPU.
    channels = by_group.transpose(0, 1).flatten(1, 2)  # (n, G in, h, w)
    inner = F.conv2d(channels, down.flatten(0, 1), None, layer.stride, layer.padding, layer.dilation, groups)
    rows = inner.unflatten(1, (groups, -1)).transpose(0, 1)  # (G, n, r, h', w')
    return (up[:, None] @ rows.flatten(3)).view(len(x), -1, *inner.shape[2:])


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
