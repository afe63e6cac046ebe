"""One LoRA implementation: a slot beside each layer, trained at rank r, filled with any mix of concepts for drawing.

LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1): W x + (alpha / r) B A x, with A (r, in) random and B (out, r)
zero at the start. Several LoRAs with strengths s_i are one of rank r_1 + r_2 + ...:

    A = [A_1; A_2; ...]        B = [s_1 alpha_1/r_1 B_1, s_2 alpha_2/r_2 B_2, ...]

exactly, so a mix costs what one LoRA of that rank costs, changing it is a copy of a few MB, and an empty slot is the
bare layer to the bit. Layers are named as kohya's files name them: `lora_unet_` or `lora_te_` + the module's path with
`.` written `_`.

Changes that are no plain LoRA (`changes`) go the same way where a LoRA of a small rank equals them; else the slot holds
the sum of s_i (W_i' - W) of the layer's own weight W. Biases and norms are replaced, and put back when it is cleared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..concepts.concept import Lora, LoraLayer
from ..concepts.layer_changes import Change, as_lora, exact_rank, fits
from ..concepts.weight_deltas import bias_change, weight_change
from ..errors import UserError

LoraTargets = Literal["attention", "transformer", "all"]
"""Which layers of the UNet learn: the attentions' projections (q, k, v, out); every linear layer of the transformers,
1x1 convolutions included; or the convolutions of resnets and resampling too (what kohya's files call LoCon)."""

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_UNET = "lora_unet"
_MERGE_AFTER_USES = 2  # uses, of the UNet's layers; how a prompt is encoded must not depend on those encoded before it
_FACTORED = 64  # rank up to which a change goes as a LoRA; above, the sum of whole changes costs no more
_MERGE_MAX_WEIGHTS = 1 << 19  # numbers; of larger weights a LoRA costs a few percent, and the copies would take GBs


class LoraAdapter:
    """The place beside one linear or convolutional layer. Empty until `put`.

    passing: what is put is a mix to draw with, which does not change. Where that is cheaper, it is then added to a copy
    of the weights from the third use on; the layer's own weights are set aside and come back as they were.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, path: str = ""):
        self.layer, self.path = layer, path  # its path in the model
        self.down: Tensor | None = None  # A: (r, in) or (r, in, k, k)
        self.up: Tensor | None = None  # B: (out, r) or (out, r, 1, 1)
        self.whole: Tensor | None = None  # a change of the weight's shape, which is added to it
        self._hook = self._bare = None
        self._uses, self._may_merge = 0, False

    def put(self, down: Tensor | None, up: Tensor | None, passing: bool = False, whole: Tensor | None = None) -> None:
        self._restore()
        self.down, self.up, self.whole, self._uses, self._may_merge = down, up, whole, 0, passing
        self._hook = self._hook or self.layer.register_forward_hook(self._add)

    def clear(self) -> None:
        self._restore()
        self._unhook()
        self.down = self.up = self.whole = None

    @property
    def is_empty(self) -> bool:
        return self.down is None and self.whole is None

    def _add(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        self._follow(x.device)
        self._uses += 1
        if self._uses == _MERGE_AFTER_USES and self._may_merge and _is_merge_faster(layer.weight):
            self._merge()
        if self.whole is not None:
            out = out + _applied(layer, x, self.whole.to(x.dtype))
        return out if self.down is None else self._add_factors(layer, x, out)

    def _add_factors(self, layer: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(layer, nn.Linear):
            inner = F.linear(x, down)
            if torch.is_grad_enabled():
                return out + F.linear(inner, up)
            out.view(-1, out.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), up.t())  # nobody else has seen it
            return out
        return out + F.conv2d(_applied(layer, x, down), up.flatten(1)[:, :, None, None])

    def _follow(self, device: torch.device) -> None:
        """Bring what it holds to where the layer computes: it may have been filled while the model waited elsewhere."""
        if self.down is not None and self.down.device != device:
            self.down, self.up = self.down.to(device), self.up.to(device)
        if self.whole is not None and self.whole.device != device:
            self.whole = self.whole.to(device)

    def _merge(self) -> None:
        bare = self.layer.weight
        changed = bare.detach() if self.whole is None else bare.detach() + self.whole
        if self.down is not None:
            changed = torch.addmm(changed.flatten(1), self.up.flatten(1), self.down.flatten(1)).view_as(bare)
        self.layer.weight, self._bare = nn.Parameter(changed, requires_grad=False), bare
        self._unhook()

    def _restore(self) -> None:
        if self._bare is not None:
            self.layer.weight, self._bare = self._bare, None

    def _unhook(self) -> None:
        if self._hook:
            self._hook.remove()
        self._hook = None


def _applied(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What the layer would give with this weight and without a bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)


class _Aside:
    """Biases, and weights of norms, that others stand for while a mix is drawn with."""

    def __init__(self):
        self._bare: list[tuple[nn.Module, str, nn.Parameter]] = []

    def replace(self, module: nn.Module, name: str, value: Tensor) -> None:
        bare = getattr(module, name)
        self._bare.append((module, name, bare))
        setattr(module, name, nn.Parameter(value.to(bare.device, bare.dtype), requires_grad=False))

    def restore(self) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Put the model's own back; return what stood for them."""
        stood = [(module, name, getattr(module, name)) for module, name, _ in self._bare]
        for module, name, bare in reversed(self._bare):
            bare.data = bare.data.to(getattr(module, name).device)  # the model may have moved meanwhile
            setattr(module, name, bare)
        self._bare.clear()
        return stood


def _is_merge_faster(weight: Tensor) -> bool:
    """On a card nobody has measured it; and what bf16 rounds off a sum is a good part of a LoRA."""
    return weight.device.type == "cpu" and weight.dtype.itemsize >= 4 and weight.numel() <= _MERGE_MAX_WEIGHTS


class LoraAdapters:
    """Every layer of a base that a LoRA may change, by its kohya name.

    models: name prefix -> model, for example {"lora_unet": unet, "lora_te": text_encoder}. naming: for some prefixes,
    from a module's path here to its path as kohya's files have it; a LoRA may use either. idle: beginnings of names of
    layers that the base never reads; they can be filled, as files hold them, but training them would move nothing.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        naming: Mapping[str, Callable[[str], str]] | None = None,
        idle: Collection[str] = (),
    ):
        self._adapters: dict[str, LoraAdapter] = {}
        self._norms: dict[str, nn.Module] = {}
        self._aside = _Aside()
        self._aliases: dict[str, str] = {}
        self._unused = tuple(idle)
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

    def layers(self) -> dict[str, nn.Module]:
        """Every layer, by its kohya name."""
        return {name: slot.layer for name, slot in self._adapters.items()}

    def names(self, targets: LoraTargets, text: bool = False) -> list[str]:
        """The layers where a LoRA of these targets is trained: the UNet's and, with `text`, the text encoders' (their
        attention, and beyond "attention" their whole transformer)."""
        chosen = [
            name
            for name, slot in self._adapters.items()
            if (_is_unet_target(slot, targets) if name.startswith(_UNET) else text and _is_text_target(slot, targets))
        ]
        return [name for name in chosen if not name.startswith(self._unused)] if self._unused else chosen

    def check(self, lora: Lora, who: str) -> None:
        """Raises UserError unless every layer of `lora` exists here with its shape."""
        for name in (*lora.layers, *lora.changes):
            place = self._aliases.get(name, name)
            slot = self._adapters.get(place)
            if name in lora.layers:
                sound = slot is not None and _has_shape(lora.layers[name], slot.layer.weight.shape)
            else:
                sound = _change_fits(lora.changes[name], slot.layer if slot else self._norms.get(place))
            if not sound:
                raise UserError(
                    f"{who} was made for another base: its layer {name} does not fit the loaded one.",
                    "Load the base it was made for (--base).",
                )

    @contextmanager
    def filled(self, mix: Iterable[tuple[Lora, float]]) -> Iterator[None]:
        """The slots hold this mix inside the block, and nothing after it, whatever happens."""
        try:
            self.fill(mix)
            yield
        finally:
            self.clear()

    def fill(self, mix: Iterable[tuple[Lora, float]]) -> None:
        """The slots hold this mix and nothing else, from now on: for a change within a `filled` block."""
        self.clear()
        for name, parts in self._group_by_layer(mix).items():
            if name in self._norms:
                self._replace(self._norms[name], parts)
            else:
                self._put(self._adapters[name], parts, passing=name.startswith(_UNET))

    def room(self, loras: Iterable[Lora]) -> int:
        """Bytes that the slots hold for a mix of these: LoRAs, and whole changes as large as the weights themselves."""
        size = 0
        for name, parts in self._group_by_layer((lora, 1.0) for lora in loras).items():
            if slot := self._adapters.get(name):
                weight = slot.layer.weight
                ranks = [_factored_rank(part, weight.shape) for part, _ in parts]
                factors = sum(ranks) * (len(weight) + weight[0].numel())
                size += (factors + (0 if all(ranks) else weight.numel())) * weight.element_size()
        return size

    def _put(self, slot: LoraAdapter, parts: list[tuple[LoraLayer | Change, float]], passing: bool) -> None:
        weight = slot.layer.weight
        factors, others = _sorted(parts, weight.shape)
        down = up = whole = None
        if factors:
            down = torch.cat([_to_tensor(part.down).view(-1, *weight.shape[1:]) for part, _ in factors])
            up = torch.cat(
                [_to_tensor(part.up).flatten(1) * (s * part.alpha / part.down.shape[0]) for part, s in factors], dim=1
            )
            down, up = (one.to(weight.device, weight.dtype) for one in (down, up))
        for change, strength in others:
            if (added := weight_change(change, weight)) is not None:
                whole = added.mul_(strength) if whole is None else whole.add_(added, alpha=strength)
        if down is not None or whole is not None:
            slot.put(down, up, passing, None if whole is None else whole.to(weight.dtype))
        self._replace_bias(slot.layer, others)

    def _replace(self, norm: nn.Module, parts: list[tuple[Change, float]]) -> None:
        """A norm's weight and bias by what they become."""
        added = [(weight_change(change, norm.weight), strength) for change, strength in parts]
        if changes := [strength * one for one, strength in added if one is not None]:
            self._aside.replace(norm, "weight", norm.weight.detach().float() + sum(changes))
        self._replace_bias(norm, parts)

    def _replace_bias(self, layer: nn.Module, parts: list[tuple[Change, float]]) -> None:
        if layer.bias is None:
            return
        added = [(bias_change(change, layer.bias), strength) for change, strength in parts]
        if changes := [strength * one for one, strength in added if one is not None]:
            self._aside.replace(layer, "bias", layer.bias.detach().float() + sum(changes))

    def train(
        self, targets: LoraTargets, rank: int, generator: torch.Generator, text: bool = False
    ) -> dict[str, nn.Parameter]:
        """Fill the slots of these layers with a LoRA to be trained: fp32 masters, by tensor name as in kohya's files.

        A is uniform in +-1/sqrt(in) (kaiming with a = sqrt 5, as PEFT and kohya start it), B is zero, alpha is r. With
        `text` the text encoders learn too; the UNet starts the same with or without.
        """
        trained = {}
        for name in self.names(targets, text):
            slot = self._adapters[name]
            weight = slot.layer.weight  # (out, in) or (out, in, k, k)
            bound = 1 / math.sqrt(weight[0].numel())
            down = (torch.rand(rank, *weight.shape[1:], generator=generator) * 2 - 1) * bound
            up = torch.zeros(weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
            trained[f"{name}.lora_down.weight"] = nn.Parameter(down.to(weight.device))
            trained[f"{name}.lora_up.weight"] = nn.Parameter(up.to(weight.device))
            slot.put(trained[f"{name}.lora_down.weight"], trained[f"{name}.lora_up.weight"])
        return trained

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The bare base inside the block; what the slots hold comes back after it."""
        full = [(slot, slot.down, slot.up, slot.whole) for slot in self._adapters.values() if not slot.is_empty]
        replaced = self._aside.restore()
        self.clear()
        try:
            yield
        finally:
            for slot, down, up, whole in full:
                slot.put(down, up, whole=whole)
            for module, name, value in replaced:
                self._aside.replace(module, name, value)

    def clear(self) -> None:
        self._aside.restore()
        for slot in self._adapters.values():
            slot.clear()

    def _group_by_layer(self, mix: Iterable[tuple[Lora, float]]) -> dict[str, list[tuple[LoraLayer | Change, float]]]:
        parts: dict[str, list[tuple[LoraLayer | Change, float]]] = {}
        for lora, strength in mix:
            if strength == 0:
                continue
            for name, layer in (lora.layers | lora.changes).items():
                parts.setdefault(self._aliases.get(name, name), []).append((layer, strength))
        return parts


def to_lora(trained: dict[str, nn.Parameter]) -> Lora:
    """What `LoraAdapters.train` made, as a concept holds it."""
    layers = {}
    for key, down in trained.items():
        name, end = key.split(".", 1)
        if end == "lora_down.weight":
            up = trained[f"{name}.lora_up.weight"]
            layers[name] = LoraLayer(_to_array(down), _to_array(up), float(down.shape[0]))
    return Lora(layers)


def _is_unet_target(slot: LoraAdapter, targets: LoraTargets) -> bool:
    if targets == "attention":
        return isinstance(slot.layer, nn.Linear) and slot.path.endswith(_ATTENTION)
    if "attentions." in slot.path:
        return slot.layer.weight[0, 0].numel() == 1
    return targets == "all" and ("resnets." in slot.path or "samplers." in slot.path)


def _is_text_target(slot: LoraAdapter, targets: LoraTargets) -> bool:
    return slot.path.endswith(_TEXT_ATTENTION) if targets == "attention" else "layers." in slot.path


def _sorted(
    parts: list[tuple[LoraLayer | Change, float]], shape: torch.Size
) -> tuple[list[tuple[LoraLayer, float]], list[tuple[Change, float]]]:
    """Those that a LoRA of a small rank equals, as that, and the others."""
    factors, others = [], []
    for part, strength in parts:
        rank = _factored_rank(part, shape)
        if isinstance(part, LoraLayer):
            factors.append((part, strength))
        elif rank and (matrices := as_lora(part, rank)):
            factors.append((LoraLayer(*matrices, float(rank)), strength))
        else:
            others.append((part, strength))
    return factors, others


def _factored_rank(part: LoraLayer | Change, shape: torch.Size) -> int:
    """The rank of what the slot of a weight of that shape holds as a LoRA; 0 where it holds the whole change."""
    if isinstance(part, LoraLayer):
        return part.rank
    rank = exact_rank(part)
    return rank if rank <= min(_FACTORED, shape[0] // 2, shape[1:].numel() // 2) else 0


def _change_fits(change: Change, layer: nn.Module | None) -> bool:
    if layer is None or not fits(change, layer.weight.shape):
        return False
    return layer.bias is not None or not {"diff_b", "b_norm"} & change.keys()


def _has_shape(layer: LoraLayer, weight: torch.Size) -> bool:
    return layer.up.shape[0] == weight[0] and layer.down[0].size == math.prod(weight[1:])


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _to_array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().float().cpu().numpy().copy()
