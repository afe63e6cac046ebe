"""The token's rows: where they start, how they stand in a caption, how long they may grow."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ...models import StableDiffusion
from ...models.text_encoder import TextEncoder

MAX_CLASS_VECTORS = 8  # of a token that starts as a class noun


class TokenEmbedding:
    """The vectors of a token for each text encoder, (n, width) fp32, started from the embeddings of some words.

    A row longer than the vocabulary's longest is used at that length: the attention of the text encoder weighs words by
    length, and a token that drowns the rest of the prompt cannot be mixed. What trains is the row before that, so that
    a checkpoint goes on exactly.
    """

    def __init__(self, base: StableDiffusion, words: str, count: int):
        self.raw = {
            key: nn.Parameter(encoder.initial_embeddings(words, count)) for key, encoder in base.encoders.items()
        }
        self._max_norm = {key: max_embedding_norm(encoder) for key, encoder in base.encoders.items()}

    def __call__(self) -> dict[str, Tensor]:
        """As the prompt gets them; gradients reach `raw`."""
        return {key: clip_norm(rows, self._max_norm[key]) for key, rows in self.raw.items()}

    def named(self) -> dict[str, nn.Parameter]:
        return {f"rows.{key}": rows for key, rows in self.raw.items()}

    def group(self, lr: float) -> dict:
        """For the optimiser. Rows are not decayed: zero is no neutral word."""
        return {"params": list(self.raw.values()), "lr": lr, "weight_decay": 0.0}


def embedding_for_class(base: StableDiffusion, class_noun: str) -> TokenEmbedding:
    """A row for each token of the class noun, so that it starts as that noun."""
    count = max(len(encoder.ids(class_noun)) for encoder in base.encoders.values())
    return TokenEmbedding(base, class_noun, min(count or 1, MAX_CLASS_VECTORS))


def insert_embeddings(caption: str, rows: Mapping[str, Tensor]) -> list[str | Mapping[str, Tensor]]:
    """ "a photo of {}" to the pieces that `condition` takes."""
    before, after = caption.split("{}")
    return [before, rows, after]


def clip_norm(rows: Tensor, longest: float) -> Tensor:
    """Rows (n, width) whose length is at most `longest`, directions kept."""
    return rows * (longest / rows.norm(dim=1, keepdim=True)).clamp(max=1.0)


def max_embedding_norm(encoder: TextEncoder) -> float:
    """Length of the vocabulary's longest row."""
    return float(encoder.token_embeddings.float().norm(dim=1).max())
