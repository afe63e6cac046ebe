"""Record where cross-attention reads chosen positions of the prompt: what Prompt-to-Prompt (Hertz et al. 2022, arXiv
2208.01626) and DAAM (Tang et al. 2023, arXiv 2210.04885) use as maps of words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

_MEMORY = 0.7  # share of the earlier steps in the running mean: late steps show shapes, early ones places
_MAX_SHARE = 0.5  # of the latents' side: maps of larger layers show texture more than things


class AttentionMaps:
    """Maps of prompt positions for some rows of every predicted batch, averaged over heads, layers and steps.

    positions: for each row of the batch that is recorded, by index, the positions in its prompt's embeddings.
    """

    def __init__(self, model: StableDiffusion, positions: Mapping[int, Sequence[int]], latent_size: tuple[int, int]):
        self._model, self._positions, self._size = model, positions, latent_size
        self._step: list[Tensor] = []
        self._mean: Tensor | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record all predictions in the block."""
        layers = [module for name, module in self._model.unet.named_modules() if name.endswith("attn2")]
        hooks = [layer.register_forward_pre_hook(self._record, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish_step(self) -> Tensor:
        """Return the maps so far, (rows, 1, h, w), 0 to 1 each; call it after each prediction.

        A row without positions, or whose attention is the same everywhere, has a map of the middle.
        """
        step = torch.stack(self._step).mean(0)
        self._step.clear()
        self._mean = step if self._mean is None else _MEMORY * self._mean + (1 - _MEMORY) * step
        low, high = self._mean.amin((2, 3), keepdim=True), self._mean.amax((2, 3), keepdim=True)
        maps = (self._mean - low) / (high - low).clamp(min=1e-8)
        return torch.where(high - low > 1e-8, maps, _middle(self._size).to(maps))

    def _record(self, layer: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        """Compute softmax(Q K^T / sqrt(d)) at the positions, once more than the layer itself does."""
        hidden, context = args[0], options["encoder_hidden_states"]  # (R, h w, c), (R, tokens, d)
        height, width = self._grid(hidden.shape[1])
        if height > self._size[0] * _MAX_SHARE:
            return
        rows = list(self._positions)
        # All rows are projected: LoRA adapters may act on groups of the whole batch.
        attention = cast("Attention", layer)
        projected = attention.to_q(hidden), cast(nn.Linear, attention.to_k)(context)
        query, key = (_split_heads(x[rows], attention.heads) for x in projected)
        share = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1).mean(1)  # (rows, h w, tokens)
        maps = [share[i][:, list(self._positions[row])].sum(-1) for i, row in enumerate(rows)]
        grid = torch.stack(maps).view(-1, 1, height, width).float()
        self._step.append(F.interpolate(grid, self._size, mode="bilinear"))

    def _grid(self, count: int) -> tuple[int, int]:
        """Return (h, w) of a layer with that many positions: the latents' size divided by a power of 2, rounded up."""
        height, width = self._size
        while height * width > count:
            height, width = -(-height // 2), -(-width // 2)
        return height, width


def _middle(size: tuple[int, int]) -> Tensor:
    """Return a map that is 1 in the middle and falls to 0 at the nearest edges, (h, w)."""
    y, x = (torch.linspace(-1, 1, side) for side in size)
    return (1 - y[:, None] ** 2 - x**2).clamp(min=0)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, n, heads d) -> (rows, heads, n, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
