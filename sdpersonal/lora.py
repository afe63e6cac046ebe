"""One LoRA implementation: a slot beside each layer, trained at rank r, filled with any mix of concepts for drawing.

LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1): W x + (alpha / r) B A x, with A (r, in) random and B (out, r)
zero at the start. Several LoRAs with strengths s_i are one of rank r_1 + r_2 + ...:

    A = [A_1; A_2; ...]        B = [s_1 alpha_1/r_1 B_1, s_2 alpha_2/r_2 B_2, ...]

exactly, so a mix costs what one LoRA of that rank costs, changing it is a copy of a few MB, and an empty slot is the
bare layer to the bit. Layers are named as kohya's files name them: `lora_unet_` + the module's path with `.` written
`_`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .concept import Lora, LoraLayer
from .errors import PersonalError

Targets = Literal["attention", "transformer"]
"""Which layers learn: the attentions' projections (q, k, v, out), or every linear layer of the transformer blocks."""

_ATTENTION = ("_to_q", "_to_k", "_to_v", "_to_out_0")


class Slot:
    """The place beside one linear or convolutional layer. Empty until `put`."""

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        self.layer = layer
        self.down: Tensor | None = None  # A: (r, in) or (r, in, k, k)
        self.up: Tensor | None = None  # B: (out, r)
        self._hook = None

    def put(self, down: Tensor, up: Tensor) -> None:
        self.down, self.up = down, up
        self._hook = self._hook or self.layer.register_forward_hook(self._add)

    def clear(self) -> None:
        if self._hook:
            self._hook.remove()
        self.down = self.up = self._hook = None

    def _add(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(layer, nn.Linear):
            return out + F.linear(F.linear(x, down), up)
        inner = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
        return out + F.conv2d(inner, up[:, :, None, None])


class Slots:
    """Every layer of a base that a LoRA may change, by its kohya name.

    models: name prefix -> model, for example {"lora_unet": unet, "lora_te": text_encoder}.
    """

    def __init__(self, models: dict[str, nn.Module]):
        self._slots = {
            f"{prefix}_{path.replace('.', '_')}": Slot(module)
            for prefix, model in models.items()
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }

    def names(self, targets: Targets) -> list[str]:
        """The UNet's layers where a LoRA of these targets is trained."""
        inside = [name for name, slot in self._slots.items() if name.startswith("lora_unet_") and _is_linear(slot)]
        if targets == "attention":
            return [name for name in inside if name.endswith(_ATTENTION)]
        return [name for name in inside if "_attentions_" in name]

    def check(self, lora: Lora, who: str) -> None:
        """Raises PersonalError unless every layer of `lora` exists here with its shape."""
        for name, layer in lora.layers.items():
            slot = self._slots.get(name)
            if slot is None or (layer.up.shape[0], layer.down.shape[1]) != tuple(slot.layer.weight.shape[:2]):
                raise PersonalError(
                    f"{who} was made for another base: its layer {name} does not fit the loaded one.",
                    "Load the base it was made for (--base).",
                )

    @contextmanager
    def filled(self, mix: Iterable[tuple[Lora, float]]) -> Iterator[None]:
        """The slots hold this mix inside the block, and nothing after it, whatever happens."""
        try:
            for name, parts in _by_layer(mix).items():
                slot = self._slots[name]
                self._put(slot, parts)
            yield
        finally:
            self.clear()

    def _put(self, slot: Slot, parts: list[tuple[LoraLayer, float]]) -> None:
        weight = slot.layer.weight
        down = torch.cat([_tensor(part.down) for part, _ in parts])
        up = torch.cat(
            [_tensor(part.up).flatten(1) * (s * part.alpha / part.down.shape[0]) for part, s in parts], dim=1
        )
        slot.put(down.to(weight.device, weight.dtype), up.to(weight.device, weight.dtype))

    def train(self, targets: Targets, rank: int, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """Fill the slots of these layers with a LoRA to be trained: fp32 masters, by tensor name as in kohya's files.

        A is uniform in +-1/sqrt(in) (kaiming with a = sqrt 5, as PEFT and kohya start it), B is zero, alpha is r.
        """
        trained = {}
        for name in self.names(targets):
            slot = self._slots[name]
            out_features, in_features = slot.layer.weight.shape
            bound = 1 / math.sqrt(in_features)
            down = (torch.rand(rank, in_features, generator=generator) * 2 - 1) * bound
            device = slot.layer.weight.device
            trained[f"{name}.lora_down.weight"] = nn.Parameter(down.to(device))
            trained[f"{name}.lora_up.weight"] = nn.Parameter(torch.zeros(out_features, rank, device=device))
            slot.put(trained[f"{name}.lora_down.weight"], trained[f"{name}.lora_up.weight"])
        return trained

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """The bare base inside the block; what the slots hold comes back after it."""
        held = {name: (slot.down, slot.up) for name, slot in self._slots.items() if slot.down is not None}
        self.clear()
        try:
            yield
        finally:
            for name, (down, up) in held.items():
                self._slots[name].put(down, up)

    def clear(self) -> None:
        for slot in self._slots.values():
            slot.clear()


def to_lora(trained: dict[str, nn.Parameter]) -> Lora:
    """What `Slots.train` made, as a concept holds it."""
    layers = {}
    for key, down in trained.items():
        name, end = key.split(".", 1)
        if end == "lora_down.weight":
            up = trained[f"{name}.lora_up.weight"]
            layers[name] = LoraLayer(_array(down), _array(up), float(down.shape[0]))
    return Lora(layers)


def _by_layer(mix: Iterable[tuple[Lora, float]]) -> dict[str, list[tuple[LoraLayer, float]]]:
    parts: dict[str, list[tuple[LoraLayer, float]]] = {}
    for lora, strength in mix:
        if strength == 0:
            continue
        for name, layer in lora.layers.items():
            parts.setdefault(name, []).append((layer, strength))
    return parts


def _is_linear(slot: Slot) -> bool:
    return isinstance(slot.layer, nn.Linear)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().float().cpu().numpy().copy()
