"""Record where cross-attention reads chosen positions of the prompt: what Prompt-to-Prompt (Hertz et al. 2022, arXiv
2208.01626) and DAAM (Tang et al. 2023, arXiv 2210.04885) use as maps of words.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from .backends import to_device
from .stable_diffusion import StableDiffusion
from .unet_replay import ReplayedRecorder

Target = tuple[int, Sequence[int]]
"""A row of the predicted batch, and positions in its prompt's embeddings."""

_MEMORY = 0.7  # share of the earlier steps in the running mean: late steps show shapes, early ones places
_MAX_SHARE = 0.5  # of the latents' side: maps of larger layers show texture more than things


class AttentionRecorder(ReplayedRecorder):
    """Records the attention to prompt positions, averaged over heads and layers. It does not change a prediction.

    targets: what is recorded of the next predictions; without any, they cost nothing.
    """

    def __init__(self, model: StableDiffusion, latent_size: tuple[int, int], targets: Sequence[Target] = ()):
        self._model, self._size, self.targets = model, latent_size, targets
        self._attention = [module for name, module in model.unet.named_modules() if name.endswith("attn2")]
        self._layers: list[Tensor] = []
        self._handles: list[RemovableHandle] = []
        self._indices: dict[Hashable, tuple[Tensor, ...]] = {}  # by targets; see `_indices_of`

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record all predictions in the block."""
        unet = self._model.unet
        handles = unet.register_forward_pre_hook(self._begin), unet.register_forward_hook(self._end)
        try:
            yield
        finally:
            self._end()
            for handle in handles:
                handle.remove()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was recorded since the last `take`."""
        return not self._layers

    def take(self) -> Tensor:
        """Return the maps since the last call, (targets, 1, h, w): the share of the attention, 0 to 1."""
        maps = torch.stack(self._layers).mean(0)
        self._layers.clear()
        return maps

    def replay_key(self) -> Hashable:
        return ("attention", self._size, _as_key(self.targets)) if self.targets else None

    @contextmanager
    def apart(self) -> Iterator[list[Tensor]]:
        others, self._layers = self._layers, []
        try:
            yield self._layers
        finally:
            self._layers = others

    def add(self, tensors: Sequence[Tensor]) -> None:
        self._layers += tensors

    def fixed_tensors(self) -> tuple[Tensor, ...]:
        return self._indices_of(self.targets) if self.targets else ()

    def _indices_of(self, targets: Sequence[Target]) -> tuple[Tensor, ...]:
        """Return the distinct rows of the targets, and the positions of each, on the device."""
        key = _as_key(targets)
        if key not in self._indices:
            lists = [list(dict.fromkeys(row for row, _ in targets)), *(list(positions) for _, positions in targets)]
            flat = to_device(torch.tensor([*chain(*lists)], dtype=torch.long), self._model.device)
            self._indices[key] = flat.split([len(part) for part in lists])
        return self._indices[key]

    def _begin(self, *_: object) -> None:
        """Listen to the layers until the prediction's end. LoRA adapters have their hooks by now: theirs come first."""
        if not self.targets:
            return
        for layer in self._attention:
            outputs: dict[str, Tensor] = {}
            for part in ("to_q", "to_k"):
                self._handles.append(getattr(layer, part).register_forward_hook(partial(_keep, outputs, part)))
            self._handles.append(layer.register_forward_hook(partial(self._record, outputs)))

    def _end(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _record(self, outputs: dict[str, Tensor], layer: nn.Module, *_: object) -> None:
        """Compute softmax(Q K^T / sqrt(d)) at the positions from the layer's own Q and K, (R, h w, c), (R, tokens, c).

        They are not computed again: a LoRA adapter counts its uses.
        """
        query, key = outputs.pop("to_q"), outputs.pop("to_k")
        height, width = self._grid(query.shape[1])
        if height > math.ceil(self._size[0] * _MAX_SHARE):
            return
        rows = list(dict.fromkeys(row for row, _ in self.targets))
        rows_index, *positions = self._indices_of(self.targets)  # lists would be copied to a card, which would wait
        # In fp32: the products of SD 2's exceed fp16.
        query, key = (_split_heads(x[rows_index].float(), cast(int, layer.heads)) for x in (query, key))
        share = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1).mean(1)  # (rows, h w, tokens)
        targets = zip(self.targets, positions, strict=True)
        maps = [share[rows.index(row)][:, index].sum(-1) for (row, _), index in targets]
        grid = torch.stack(maps).view(-1, 1, height, width)
        self._layers.append(F.interpolate(grid, self._size, mode="bilinear"))

    def _grid(self, count: int) -> tuple[int, int]:
        """Return (h, w) of a layer with that many positions: the latents' size divided by a power of 2, rounded up."""
        height, width = self._size
        while height * width > count:
            height, width = -(-height // 2), -(-width // 2)
        return height, width


class AttentionMaps(AttentionRecorder):
    """Maps of prompt positions for some rows of every predicted batch, averaged over heads, layers and steps.

    positions: for each row of the batch that is recorded, by index, the positions in its prompt's embeddings.
    """

    def __init__(self, model: StableDiffusion, positions: Mapping[int, Sequence[int]], latent_size: tuple[int, int]):
        super().__init__(model, latent_size, list(positions.items()))
        self._mean: Tensor | None = None

    def finish_step(self) -> Tensor:
        """Return the maps so far, (rows, 1, h, w), 0 to 1 each; call it after each prediction.

        A row without positions, or whose attention is the same everywhere, has a map of the middle.
        """
        if self.is_empty:  # the model has cross-attention in its largest layers only
            self._layers.append(torch.zeros(len(self.targets), 1, *self._size, device=self._model.device))
        step = self.take()
        self._mean = step if self._mean is None else _MEMORY * self._mean + (1 - _MEMORY) * step
        low, high = self._mean.amin((2, 3), keepdim=True), self._mean.amax((2, 3), keepdim=True)
        maps = (self._mean - low) / (high - low).clamp(min=1e-8)
        return torch.where(high - low > 1e-8, maps, _middle(self._size, maps.device).to(maps))


def _as_key(targets: Sequence[Target]) -> Hashable:
    return tuple((row, tuple(positions)) for row, positions in targets)


def _keep(outputs: dict[str, Tensor], name: str, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
    outputs[name] = out


def _middle(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return a map that is 1 in the middle and falls to 0 at the nearest edges, (h, w)."""
    y, x = (torch.linspace(-1, 1, side, device=device) for side in size)
    return (1 - y[:, None] ** 2 - x**2).clamp(min=0)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (rows, n, heads d) to (rows, heads, n, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
