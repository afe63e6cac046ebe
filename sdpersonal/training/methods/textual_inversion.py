"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): the base model is frozen, only the token's embeddings train.

The embeddings are a separate parameter, inserted at the output of the token embedding layer, so no gradient, optimizer
state or write ever touches the vocabulary.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ...concepts.concept import Concept
from ...models import StableDiffusion
from ..dataset import Batch, CaptionPieces
from ..loss_inputs import CaptionTokenizer, LossInputs
from ..objective import batch_loss
from ..presets import Preset
from .token_embedding import TokenEmbedding, insert_embeddings


class TextualInversion:
    """Trains a token of `vectors` embeddings, which start from those of the words `init`."""

    name = "textual-inversion"
    trigger = ""
    autocast_dtype = None

    def __init__(self, base: StableDiffusion, init: str, vectors: int, preset: Preset, start: Concept | None = None):
        """start: a concept to continue."""
        self._base, self._preset = base, preset
        self._embedding = TokenEmbedding(base, init, vectors, start.vectors if start else None)
        self._tokenizer = CaptionTokenizer(base, self._embedding.caption_pieces)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        return self._embedding()

    @property
    def snr_gamma(self) -> float | None:
        return self._preset.snr_gamma

    @property
    def trained_lora(self) -> dict[str, nn.Parameter]:
        return {}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return self._embedding.named_parameters()

    def param_groups(self) -> list[dict]:
        return [self._embedding.param_group(self._preset.embedding_lr)]

    def learning_rates(self, step: int) -> list[float]:
        return [self._preset.embedding_lr]

    def inputs(self, batch: Batch) -> LossInputs:
        return self._tokenizer.inputs(batch)

    def phase(self, step: int) -> int:
        return 0

    def loss(self, inputs: LossInputs, step: int) -> Tensor:
        return batch_loss(self._base, self._embedding(), inputs, self._preset.snr_gamma)

    def caption_pieces(self, caption: str) -> CaptionPieces:
        return insert_embeddings(caption, self._embedding())

    def lora(self) -> None:
        return None

    def finish(self, run: Path) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Do nothing: this method does not change the base model."""
