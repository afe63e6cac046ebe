"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): the base stays as it is, only the token's own rows are
learned.

The rows are a parameter of their own, put in at the output of the token embedding, so no gradient, optimiser state or
write ever touches the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..bases import StableDiffusion
from ..bases.text import TextEncoder
from .dataset import Batch
from .objective import diffusion_loss
from .presets import Preset


class TextualInversion:
    """A token of `vectors` rows, starting from the embeddings of the words `init`."""

    name = "textual-inversion"

    def __init__(self, base: StableDiffusion, init: str, vectors: int, preset: Preset):
        self._base = base
        self.rows = initial_rows(base, init, vectors)
        self._preset = preset
        self._rates = [group["lr"] for group in self.groups()]

    def trained(self) -> dict[str, nn.Parameter]:
        return {f"rows.{key}": rows for key, rows in self.rows.items()}

    def groups(self) -> list[dict]:
        """Parameters for the optimiser, with their rates. Rows are not decayed: zero is no neutral word."""
        return [{"params": list(self.rows.values()), "lr": self._preset.rows_lr, "weight_decay": 0.0}]

    def rates(self, step: int) -> list[float]:
        return self._rates

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Per sample, (B,)."""
        condition = self._base.condition([with_rows(caption, self.rows) for caption in batch.captions])
        return diffusion_loss(
            lambda noisy, t: self._base.predict(noisy, t, condition),
            self._base.schedule,
            batch.latents,
            batch.noise,
            batch.t,
        )

    def lora(self) -> None:
        return None

    def close(self) -> None:
        """Nothing of this method is left in the base."""


def with_rows(caption: str, rows: dict[str, Tensor]) -> list[str | dict[str, Tensor]]:
    """ "a photo of {}" to the pieces that `condition` takes."""
    before, after = caption.split("{}")
    return [before, rows, after]


def initial_rows(base: StableDiffusion, words: str, count: int) -> dict[str, nn.Parameter]:
    """`count` rows for each text encoder from the embeddings of some words: repeated where there are fewer words than
    rows,
    averaged in groups where there are more."""
    return {key: nn.Parameter(_spread(encoder.vectors_of(words), count)) for key, encoder in base.encoders.items()}


def _spread(words: Tensor, count: int) -> Tensor:
    if len(words) >= count:
        return torch.stack([group.mean(0) for group in torch.tensor_split(words, count)])
    return words[torch.arange(count) * len(words) // count].clone()


def row_length(encoder: TextEncoder) -> float:
    """The mean length of a vocabulary's row; a learned row far longer drowns the prompt."""
    return float(encoder.table.float().norm(dim=1).mean())
