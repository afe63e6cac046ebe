"""Put LoRA adapters beside every layer of a model: trained at rank r, or loaded with concepts for generation.

LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1): W x + (alpha / r) B A x, with A (r, in) random and B (out, r)
zero at the start. Several LoRAs with strengths s_i equal one LoRA of rank r_1 + r_2 + ...:

    A = [A_1; A_2; ...]        B = [s_1 alpha_1/r_1 B_1, s_2 alpha_2/r_2 B_2, ...]

exactly, so a mix costs as much as one LoRA of that rank, changing it copies a few MB, and a layer with an empty adapter
computes the same bits as the bare layer. `set_groups` gives groups of a batch's rows different mixes. On a CUDA card
the matrices are in fixed buffers (`lora_buffers`).

Layers are named as in kohya's files: `lora_unet_` or `lora_te_` + the module's path with `.` written as `_`.

Changes that are not plain LoRAs (`changes`) become one if a LoRA of a small rank equals them; otherwise the adapter
holds the sum of s_i (W_i' - W) for the layer's weight W. Biases and norms are replaced, and restored by `clear`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ..concepts.concept import Lora, LoraLayer
from ..concepts.layer_changes import Change, fits
from ..concepts.plain_lora import as_lora, exact_rank
from ..concepts.weight_deltas import bias_change, weight_change
from ..errors import UserError
from .lora_buffers import LoraBuffers, StoredFactors, StoredPart, bucket_of
from .lora_groups import Factors, LayerGroups, grouped_lora, stack_factors
from .unet_replay import Replayable, address

LoraTargets = Literal["attention", "transformer", "all"]
"""Which layers of the UNet are trained: the attention projections (q, k, v, out); every linear layer of the
transformers, 1x1 convolutions included; or also the convolutions of resnets and resampling (LoCon in kohya's files)."""

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_UNET = "lora_unet"
_MERGE_AFTER_USES = 2  # forward passes; UNet only: how a prompt is encoded must not depend on those encoded before it
_FACTORED = 64  # rank up to which a change is applied as a LoRA; above it, the sum of full changes costs no more
_MERGE_MAX_WEIGHTS = 1 << 19  # elements; with larger weights a LoRA costs a few percent, and the copies would take GBs


_Norm = nn.GroupNorm | nn.LayerNorm
_Layer = nn.Linear | nn.Conv2d | _Norm
_LayerParts = list[tuple[LoraLayer | Change, float]]
"""What a mix changes in one layer, with the strengths."""
_LowRankParts = Sequence[tuple[LoraLayer, float]] | Sequence[tuple[StoredFactors, float]]


class LoraAdapter(Replayable):
    """The LoRA beside one linear or convolutional layer. It is empty until `set`.

    may_merge: the matrices are a mix for generation, which does not change. If that is cheaper, they are then merged
    into a copy of the weights from the third use on; the layer's own weights are set aside and restored unchanged.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, path: str = ""):
        self.layer, self.path = layer, path  # path: of the layer in the model
        self.down: Tensor | None = None  # A: (r, in) or (r, in, k, k)
        self.up: Tensor | None = None  # B: (out, r) or (out, r, 1, 1)
        self.full_change: Tensor | None = None  # a full change, of the weight's shape, which is added to the weight
        self._hook: RemovableHandle | None = None
        self._original_weight: Tensor | None = None
        self._uses, self._may_merge = 0, False

    def set(
        self, down: Tensor | None, up: Tensor | None, may_merge: bool = False, full_change: Tensor | None = None
    ) -> None:
        self._restore()
        self.down, self.up, self.full_change, self._uses, self._may_merge = down, up, full_change, 0, may_merge
        self._hook = self._hook or self.layer.register_forward_hook(self._add)

    def clear(self) -> None:
        self._restore()
        self._unhook()
        self.down = self.up = self.full_change = None

    @property
    def is_empty(self) -> bool:
        return self.down is None and self.full_change is None

    @property
    def is_replayable(self) -> bool:
        return self.down is None or not self.down.requires_grad  # training needs the memory that graphs hold

    def replay_key(self) -> Hashable:
        # A graph's LoRA has the same shapes in the same layer, but for its rank.
        down, up, full_change = self.down, self.up, self.full_change
        if down is None or up is None:
            return self, address(full_change)
        return self, down.data_ptr(), down.shape[0], down.dtype, up.data_ptr(), address(full_change)

    def _add(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        self._follow(x.device)
        self._uses += 1
        if self._uses == _MERGE_AFTER_USES and self._may_merge and _is_merge_faster(self.layer.weight):
            self._merge()
        if self.full_change is not None:
            out = out + _apply_weight(self.layer, x, self.full_change.to(x.dtype))
        if self.down is None or self.up is None:
            return out
        return self._add_factors(self.down.to(x.dtype), self.up.to(x.dtype), x, out)

    def _add_factors(self, down: Tensor, up: Tensor, x: Tensor, out: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            if self.full_change is None and _takes_one_product(self.layer, x, out):
                return _LoraProduct.apply(out.detach(), x, self.layer.weight, down, up)
            inner = F.linear(x, down)
            if torch.is_grad_enabled():
                return out + F.linear(inner, up)
            out.view(-1, out.shape[-1]).addmm_(
                inner.view(-1, inner.shape[-1]), up.t()
            )  # in place: `out` is not used elsewhere
            return out
        return out + F.conv2d(_apply_weight(self.layer, x, down), up.flatten(1)[:, :, None, None])

    def _follow(self, device: torch.device) -> None:
        """Move its tensors to the layer's device: they may have been set while the model was offloaded."""
        if self.down is not None and self.up is not None and self.down.device != device:
            self.down, self.up = self.down.to(device), self.up.to(device)
        if self.full_change is not None and self.full_change.device != device:
            self.full_change = self.full_change.to(device)

    def _merge(self) -> None:
        bare = self.layer.weight
        changed = bare.detach() if self.full_change is None else bare.detach() + self.full_change
        if self.down is not None and self.up is not None:
            changed = torch.addmm(changed.flatten(1), self.up.flatten(1), self.down.flatten(1)).view_as(bare)
        self.layer.weight, self._original_weight = nn.Parameter(changed, requires_grad=False), bare
        self._unhook()

    def _restore(self) -> None:
        if self._original_weight is not None:
            self.layer.weight, self._original_weight = self._original_weight, None

    def _unhook(self) -> None:
        if self._hook:
            self._hook.remove()
        self._hook = None


def _apply_weight(layer: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """Compute the layer's output with this weight and without a bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)


def _takes_one_product(layer: nn.Linear, x: Tensor, out: Tensor) -> bool:
    """Return whether layer and LoRA are computed as one: in training on a card, where each kernel counts."""
    is_frozen = not (layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad))
    has_one_dtype = x.dtype == out.dtype == layer.weight.dtype and not torch.is_autocast_enabled("cuda")
    return x.is_cuda and torch.is_grad_enabled() and is_frozen and has_one_dtype


class _LoraProduct(torch.autograd.Function):
    """Add B A x to a frozen linear layer's output W x + b, and compute both gradients of x as one sum.

    A product that adds to its result replaces a product and a sum over the whole map, forward and backward. The output
    comes detached: this function stands for the layer too.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        inner = F.linear(x.flatten(0, -2), down)  # (rows, r)
        out.view(-1, out.shape[-1]).addmm_(inner, up.t())
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, weight, down, up, inner)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, inner = ctx.saved_tensors
        rows, x_rows = grad.flatten(0, -2), x.flatten(0, -2)
        inner_grad = rows @ up  # (rows, r)
        x_grad = (rows @ weight).addmm_(inner_grad, down).view_as(x) if ctx.needs_input_grad[1] else None
        down_grad = inner_grad.t() @ x_rows if ctx.needs_input_grad[3] else None
        up_grad = rows.t() @ inner if ctx.needs_input_grad[4] else None
        return None, x_grad, None, down_grad, up_grad


class _ReplacedParameters:
    """Biases and norm weights of the model that are replaced while a mix is active."""

    def __init__(self) -> None:
        self._bare: list[tuple[nn.Module, str, nn.Parameter]] = []

    def replace(self, module: nn.Module, name: str, value: Tensor) -> None:
        bare = getattr(module, name)
        self._bare.append((module, name, bare))
        setattr(module, name, nn.Parameter(value.to(bare.device, bare.dtype), requires_grad=False))

    def restore(self) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Restore the model's own parameters; return their replacements."""
        replacements = [(module, name, getattr(module, name)) for module, name, _ in self._bare]
        for module, name, bare in reversed(self._bare):
            bare.data = bare.data.to(getattr(module, name).device)  # the model may have moved meanwhile
            setattr(module, name, bare)
        self._bare.clear()
        return replacements


def _is_merge_faster(weight: Tensor) -> bool:
    """Return whether merging pays off: only on a CPU in fp32, and for small weights.

    It was not measured on a GPU, and in bf16 rounding the sum would lose a good part of the LoRA.
    """
    return weight.device.type == "cpu" and weight.dtype.itemsize >= 4 and weight.numel() <= _MERGE_MAX_WEIGHTS


@dataclass(frozen=True)
class AdapterContents:
    """What a model's adapters held: see `LoraAdapters.take_out`."""

    active: list[tuple[LoraAdapter, Tensor | None, Tensor | None, Tensor | None]]  # A, B, full change
    replaced: list[tuple[nn.Module, str, nn.Parameter]]
    mix: list[tuple[Lora, float]] | None


class LoraAdapters:
    """The LoRA adapters of a model: one for every layer that a LoRA may change, by its kohya name.

    Args:
        models: name prefix -> model, for example {"lora_unet": unet, "lora_te": text_encoder}.
        naming: for some prefixes, maps a module's path here to its path in kohya's files; a LoRA may use either.
        unused: name prefixes of layers whose output is never used; they can be loaded, since files contain them, but
            training them would have no effect.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        naming: Mapping[str, Callable[[str], str]] | None = None,
        unused: Collection[str] = (),
    ):
        self._adapters: dict[str, LoraAdapter] = {}
        self._norms: dict[str, _Norm] = {}
        self._replaced = _ReplacedParameters()
        self._groups: list[LayerGroups] = []
        self._aliases: dict[str, str] = {}
        self._unused = tuple(unused)
        self._buffers: LoraBuffers | None = None
        self._mix: list[tuple[Lora, float]] | None = None  # what `set` loaded
        for prefix, model in models.items():
            rename = (naming or {}).get(prefix, str)
            for path, module in model.named_modules():
                if isinstance(module, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm):
                    name = f"{prefix}_{rename(path).replace('.', '_')}"
                    self._aliases[f"{prefix}_{path.replace('.', '_')}"] = name
                    if isinstance(module, nn.Linear | nn.Conv2d):
                        self._adapters[name] = LoraAdapter(module, path)
                    else:
                        self._norms[name] = module

    def use_buffers(self, device: torch.device) -> None:
        """Put the matrices of mixes into fixed buffers on the device from now on."""
        self.clear()
        self._buffers = LoraBuffers(device)

    def layers(self) -> dict[str, nn.Module]:
        """Return every layer by its kohya name."""
        return {name: adapter.layer for name, adapter in self._adapters.items()}

    def layer_names(self, targets: LoraTargets, text_encoder: bool = False) -> list[str]:
        """Return the layers where a LoRA of these targets is trained: the UNet's and, with `text_encoder`, the text
        encoders' (their attention; their whole transformer if the targets are more than "attention")."""
        chosen = [
            name
            for name, adapter in self._adapters.items()
            if (
                _is_unet_target(adapter, targets)
                if name.startswith(_UNET)
                else text_encoder and _is_text_target(adapter, targets)
            )
        ]
        return [name for name in chosen if not name.startswith(self._unused)] if self._unused else chosen

    def check(self, lora: Lora, name: str) -> None:
        """Raise UserError unless the model has every layer of `lora` with its shape."""
        for layer_name in (*lora.layers, *lora.changes):
            own_name = self._aliases.get(layer_name, layer_name)
            adapter = self._adapters.get(own_name)
            if layer_name in lora.layers:
                is_valid = adapter is not None and _has_shape(lora.layers[layer_name], adapter.layer.weight.shape)
            else:
                layer = adapter.layer if adapter else self._norms.get(own_name)
                is_valid = _change_fits(lora.changes[layer_name], layer)
            if not is_valid:
                raise UserError(
                    f"{name} was made for another base: its layer {layer_name} does not fit the loaded one.",
                    "Give --base the model that it was made for.",
                )

    @contextmanager
    def active(self, loras: Iterable[tuple[Lora, float]]) -> Iterator[None]:
        """Load this mix into the adapters for the block; clear them after it, also if it raises."""
        try:
            self.set(loras)
            yield
        finally:
            self.clear()

    def set(self, loras: Iterable[tuple[Lora, float]]) -> None:
        """Replace what the adapters hold with this mix, until further notice: for a change within an `active` block."""
        self.clear()
        mix = list(loras)
        self._store(mix)
        self._mix = mix
        for name, parts in self._group_by_layer(mix).items():
            if name in self._norms:
                self._replace(self._norms[name], [(part, s) for part, s in parts if not isinstance(part, LoraLayer)])
            else:
                self._set_adapter(self._adapters[name], parts, may_merge=name.startswith(_UNET))
        if self._buffers:
            self._buffers.flush()

    def set_groups(self, mixes: Sequence[Sequence[tuple[Lora, float]]]) -> None:
        """Give groups of a batch's rows different mixes: the UNet's rows are as many equal groups, in this order.

        What all mixes share is set as by `set`. The text encoders have only that.
        """
        self.clear()
        self._store([part for mix in mixes for part in mix])
        shared = [part for part in mixes[0] if all(any(_is_same(part, other) for other in mix) for mix in mixes[1:])]
        own = [[part for part in mix if not any(_is_same(part, other) for other in shared)] for mix in mixes]
        parts_by_group = [self._group_by_layer(mix) for mix in own]
        shared_parts = self._group_by_layer(shared)
        names = dict.fromkeys(name for parts in parts_by_group for name in parts if name.startswith(_UNET))
        # Computed from the bare weights, so before `set`; hooked in after it, since a group's weights replace the rest.
        groups = [
            self._layer_groups(name, [group.get(name, []) for group in parts_by_group], shared_parts.get(name, []))
            for name in names
        ]
        self.set(shared)
        for layer_groups in groups:
            layer_groups.attach()
        self._groups = groups

    def use_first_groups(self, count: int) -> None:
        """Predict batches of the first `count` groups only, until further notice. Without groups it does nothing."""
        for groups in self._groups:
            groups.use_first(count)

    def _layer_groups(self, name: str, parts: list[_LayerParts], shared: _LayerParts) -> LayerGroups:
        """Build one layer's changes, given what each group has of its own and what all share."""
        if norm := self._norms.get(name):
            changed = {i: _changed_parameters(norm, [*shared, *own]) for i, own in enumerate(parts) if own}
            return LayerGroups(norm, len(parts), {}, changed)
        layer = self._adapters[name].layer
        factors: dict[int, Factors] = {}
        replaced: dict[int, tuple[Tensor, Tensor | None]] = {}
        stored: dict[tuple[tuple[int, float], ...], Factors] = {}  # groups with the same LoRAs share them
        for group, own in enumerate(parts):
            low_rank, others = self._split(own, layer.weight.shape)
            if others:
                replaced[group] = _changed_parameters(layer, [*shared, *own])
            elif low_rank:
                key = tuple((id(part), strength) for part, strength in own)
                stored[key] = stored.get(key) or self._join(layer, low_rank, slot=1 + group)
                factors[group] = stored[key]
        may_merge = not shared and self._buffers is None and _is_merge_faster(layer.weight)
        return LayerGroups(layer, len(parts), factors, replaced, self._buffers is None, may_merge)

    def _store(self, mix: Sequence[tuple[Lora, float]]) -> None:
        """Copy those LoRAs of a mix to the card that are not there yet."""
        if not self._buffers:
            return
        dtype = max({a.layer.weight.dtype for a in self._adapters.values()}, key=lambda dtype: dtype.itemsize)
        loras = [lora for lora, strength in mix if strength]
        for lora in loras:
            if not self._buffers.has(lora, dtype):
                self._buffers.store(lora, self._low_rank_parts(lora), dtype, loras)

    def _low_rank_parts(self, lora: Lora) -> Iterator[StoredPart]:
        for name, parts in self._group_by_layer([(lora, 1.0)]).items():
            if adapter := self._adapters.get(name):
                for part, _ in parts:
                    for matrices, _ in _split_changes([(part, 1.0)], adapter.layer.weight.shape)[0]:
                        yield part, matrices, adapter.layer

    def _split(self, parts: _LayerParts, shape: torch.Size) -> tuple[_LowRankParts, list[tuple[Change, float]]]:
        """Split changes of a layer into those that a LoRA of a small rank equals, as such, and the others."""
        return self._buffers.split(parts) if self._buffers else _split_changes(parts, shape)

    def _join(self, layer: nn.Linear | nn.Conv2d, parts: _LowRankParts, slot: int = 0) -> Factors:
        """Return A and B of several LoRAs of a layer; those in buffers are filled by `LoraBuffers.flush`.

        slot: 0 for what all rows share, else 1 + the index of a group.
        """
        if self._buffers:
            return self._buffers.fill(layer, slot, [(part, s) for part, s in parts if isinstance(part, StoredFactors)])
        return _concatenate([(part, s) for part, s in parts if isinstance(part, LoraLayer)], layer.weight)

    def memory_bytes(self, loras: Iterable[Lora]) -> int:
        """Return the bytes that a mix of these takes: LoRAs, and full changes as large as the weights themselves."""
        size = 0
        for name, parts in self._group_by_layer((lora, 1.0) for lora in loras).items():
            if adapter := self._adapters.get(name):
                weight = adapter.layer.weight
                ranks = [_factored_rank(part, weight.shape) for part, _ in parts]
                rank = bucket_of(sum(ranks)) if self._buffers and any(ranks) else sum(ranks)
                factors = rank * (len(weight) + weight[0].numel())
                size += (factors + (0 if all(ranks) else weight.numel())) * weight.element_size()
        return size

    def _set_adapter(self, adapter: LoraAdapter, parts: _LayerParts, may_merge: bool) -> None:
        weight = adapter.layer.weight
        factors, changes = self._split(parts, weight.shape)
        down = up = full_change = None
        if factors:
            down, up = self._join(adapter.layer, factors)
        for change, strength in changes:
            if (delta := weight_change(change, weight)) is not None:
                full_change = delta.mul_(strength) if full_change is None else full_change.add_(delta, alpha=strength)
        if down is not None or full_change is not None:
            full_change = None if full_change is None else full_change.to(weight.dtype)
            adapter.set(down, up, may_merge and not self._buffers, full_change)
        self._replace_bias(adapter.layer, changes)

    def _replace(self, norm: _Norm, parts: list[tuple[Change, float]]) -> None:
        """Replace a norm's weight and bias with their changed values."""
        deltas = [(weight_change(change, norm.weight), strength) for change, strength in parts]
        if changes := [strength * delta for delta, strength in deltas if delta is not None]:
            self._replaced.replace(norm, "weight", sum(changes, start=norm.weight.detach().float()))
        self._replace_bias(norm, parts)

    def _replace_bias(self, layer: _Layer, parts: list[tuple[Change, float]]) -> None:
        if layer.bias is None:
            return
        deltas = [(bias_change(change, layer.bias), strength) for change, strength in parts]
        if changes := [strength * delta for delta, strength in deltas if delta is not None]:
            self._replaced.replace(layer, "bias", sum(changes, start=layer.bias.detach().float()))

    def add_trainable(
        self, targets: LoraTargets, rank: int, generator: torch.Generator, text_encoder: bool = False
    ) -> dict[str, nn.Parameter]:
        """Put a trainable LoRA into the adapters of these layers.

        A is uniform in +-1/sqrt(in) (kaiming with a = sqrt 5, as in PEFT and kohya), B is zero, alpha is r. With
        `text_encoder` the text encoders are trained too; the UNet's initial values are the same either way.

        Returns:
            The fp32 master parameters, by tensor name as in kohya's files.
        """
        trained, self._mix = {}, None
        for name in self.layer_names(targets, text_encoder):
            adapter = self._adapters[name]
            weight = adapter.layer.weight  # (out, in) or (out, in, k, k)
            bound = 1 / math.sqrt(weight[0].numel())
            down = (torch.rand(rank, *weight.shape[1:], generator=generator) * 2 - 1) * bound
            up = torch.zeros(weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
            trained[f"{name}.lora_down.weight"] = nn.Parameter(down.to(weight.device))
            trained[f"{name}.lora_up.weight"] = nn.Parameter(up.to(weight.device))
            adapter.set(trained[f"{name}.lora_down.weight"], trained[f"{name}.lora_up.weight"])
        return trained

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Disable all adapters inside the block; restore them after it."""
        contents = self.take_out()
        try:
            yield
        finally:
            self.put_back(contents)

    def take_out(self) -> AdapterContents:
        """Clear the adapters, and return what they held, for `put_back`."""
        active = [
            (adapter, adapter.down, adapter.up, adapter.full_change)
            for adapter in self._adapters.values()
            if not adapter.is_empty
        ]
        contents = AdapterContents(active, self._replaced.restore(), self._mix)
        self.clear()
        return contents

    def put_back(self, contents: AdapterContents) -> None:
        if self._buffers and contents.mix is not None:
            self.set(contents.mix)  # others may have been in its buffers
            return
        for adapter, down, up, full_change in contents.active:
            adapter.set(down, up, full_change=full_change)
        for module, name, value in contents.replaced:
            self._replaced.replace(module, name, value)

    @contextmanager
    def trained_in_groups(self, loras: Sequence[Mapping[str, Tensor]]) -> Iterator[None]:
        """Let G trainable LoRAs, from `add_trainable`, act in the block, each on its own of G equal groups of rows.

        Gradients reach them in a backward pass within the block. The adapters must be empty, and the LoRAs of the UNet.
        """
        by_layer: dict[str, dict[int, Factors]] = {}
        for group, trained in enumerate(loras):
            for key, down in trained.items():
                name, _, end = key.partition(".")
                if end == "lora_down.weight":
                    by_layer.setdefault(name, {})[group] = down, trained[f"{name}.lora_up.weight"]
        with ExitStack() as stack:
            for name, factors in by_layer.items():
                added = partial(_add_to_groups, stack_factors(factors, len(loras)))
                stack.callback(self._adapters[name].layer.register_forward_hook(added).remove)
            yield

    def clear(self) -> None:
        self._mix = None
        self._replaced.restore()
        for adapter in self._adapters.values():
            adapter.clear()
        for groups in self._groups:
            groups.remove()
        self._groups.clear()

    def _group_by_layer(self, mix: Iterable[tuple[Lora, float]]) -> dict[str, _LayerParts]:
        parts: dict[str, _LayerParts] = {}
        for lora, strength in mix:
            if strength == 0:
                continue
            for name, layer in (lora.layers | lora.changes).items():
                factor = lora.change_factors.get(name, 1.0)
                parts.setdefault(self._aliases.get(name, name), []).append((layer, strength * factor))
        return parts


def _add_to_groups(factors: Factors, layer: nn.Linear | nn.Conv2d, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    down, up = (matrices.to(args[0].dtype) for matrices in factors)
    return out + grouped_lora(layer, args[0], down, up)


def to_lora(trained: Mapping[str, Tensor]) -> Lora:
    """Convert the parameters from `LoraAdapters.add_trainable` to a concept's Lora."""
    layers = {}
    for key, down in trained.items():
        name, end = key.split(".", 1)
        if end == "lora_down.weight":
            up = trained[f"{name}.lora_up.weight"]
            layers[name] = LoraLayer(_to_array(down), _to_array(up), float(down.shape[0]))
    return Lora(layers)


def _is_unet_target(adapter: LoraAdapter, targets: LoraTargets) -> bool:
    if targets == "attention":
        return isinstance(adapter.layer, nn.Linear) and adapter.path.endswith(_ATTENTION)
    if "attentions." in adapter.path:
        return adapter.layer.weight[0, 0].numel() == 1
    return targets == "all" and ("resnets." in adapter.path or "samplers." in adapter.path)


def _is_text_target(adapter: LoraAdapter, targets: LoraTargets) -> bool:
    return adapter.path.endswith(_TEXT_ATTENTION) if targets == "attention" else "layers." in adapter.path


def _split_changes(
    parts: list[tuple[LoraLayer | Change, float]], shape: torch.Size
) -> tuple[list[tuple[LoraLayer, float]], list[tuple[Change, float]]]:
    """Split changes into those that a LoRA of a small rank equals, as LoRA layers, and the others."""
    factors: list[tuple[LoraLayer, float]] = []
    changes: list[tuple[Change, float]] = []
    for part, strength in parts:
        rank = _factored_rank(part, shape)
        if isinstance(part, LoraLayer):
            factors.append((part, strength))
        elif rank and (matrices := as_lora(part, rank)):
            factors.append((LoraLayer(*matrices, float(rank)), strength))
        else:
            changes.append((part, strength))
    return factors, changes


def _concatenate(factors: Sequence[tuple[LoraLayer, float]], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B of several LoRAs of a layer, concatenated by rank, as its weight is stored."""
    down = torch.cat([_to_tensor(part.down).view(-1, *weight.shape[1:]) for part, _ in factors])
    scaled = [_to_tensor(part.up).flatten(1) * (s * part.alpha / part.down.shape[0]) for part, s in factors]
    up = torch.cat(scaled, dim=1)
    return down.to(weight.device, weight.dtype), up.to(weight.device, weight.dtype)


def _changed_parameters(layer: _Layer, parts: _LayerParts) -> tuple[Tensor, Tensor | None]:
    """Return a layer's weight and bias with these changes."""
    weight, bias = layer.weight.detach().float().clone(), layer.bias
    changed_bias = None if bias is None else bias.detach().float().clone()
    for part, strength in parts:
        if isinstance(part, LoraLayer):
            delta = (_to_tensor(part.up).flatten(1) @ _to_tensor(part.down).flatten(1)).view(weight.shape)
            weight += delta.to(weight.device) * (strength * part.alpha / part.rank)
            continue
        if (change := weight_change(part, layer.weight)) is not None:
            weight += strength * change
        if changed_bias is not None and bias is not None and (change := bias_change(part, bias)) is not None:
            changed_bias += strength * change
    return weight.to(layer.weight.dtype), None if bias is None or changed_bias is None else changed_bias.to(bias.dtype)


def _is_same(part: tuple[Lora, float], other: tuple[Lora, float]) -> bool:
    return part[0] is other[0] and part[1] == other[1]


def _factored_rank(part: LoraLayer | Change, shape: torch.Size) -> int:
    """Return the rank at which a weight of that shape holds the change as a LoRA; 0 if it holds the full change."""
    if isinstance(part, LoraLayer):
        return part.rank
    rank = exact_rank(part)
    return rank if rank <= min(_FACTORED, shape[0] // 2, shape[1:].numel() // 2) else 0


def _change_fits(change: Change, layer: _Layer | None) -> bool:
    if layer is None or not fits(change, layer.weight.shape):
        return False
    return layer.bias is not None or not {"diff_b", "b_norm"} & change.keys()


def _has_shape(layer: LoraLayer, weight: torch.Size) -> bool:
    return layer.up.shape[0] == weight[0] and layer.down[0].size == math.prod(weight[1:])


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _to_array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().float().cpu().numpy().copy()
