"""Train the token's embeddings: their start, their place in a caption, the limit of their norm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ...models import StableDiffusion
from ...models.text_encoder import TextEncoder
from ..dataset import CaptionPieces, CaptionSplitter

MAX_CLASS_VECTORS = 8  # for a token that starts as a class noun


class TokenEmbedding:
    """The embeddings of a token for each text encoder, (n, width) fp32, started from those of the given words.

    An embedding whose norm exceeds the vocabulary's largest is clipped to it: the text encoder's attention weighs words
    by norm, and a token that drowns the rest of the prompt cannot be mixed. `raw`, which trains, is not clipped, so
    that a checkpoint resumes exactly.
    """

    def __init__(self, base: StableDiffusion, words: str, count: int, start: Mapping[str, np.ndarray] | None = None):
        """start: a concept's embeddings to continue from, in place of those of the words."""
        count = len(next(iter(start.values()))) if start else count
        self.raw = {
            key: nn.Parameter(encoder.initial_embeddings(words, count)) for key, encoder in base.encoders.items()
        }
        for key, embeddings in (start or {}).items():
            self.raw[key].data.copy_(torch.from_numpy(embeddings.copy()))
        self._max_norm = {key: max_embedding_norm(encoder) for key, encoder in base.encoders.items()}

    def __call__(self) -> dict[str, Tensor]:
        """Return the embeddings as the prompt uses them, clipped; gradients reach `raw`."""
        return {key: clip_norm(embeddings, self._max_norm[key]) for key, embeddings in self.raw.items()}

    def caption_pieces(self, caption: str) -> CaptionPieces:
        """Split "a photo of {}" into pieces whose vectors stand for as many of the token's, whatever their values."""
        return insert_embeddings(caption, self.raw)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {f"rows.{key}": embeddings for key, embeddings in self.raw.items()}

    def param_group(self, lr: float) -> dict:
        """Return the optimizer's group, without weight decay: a zero embedding is no neutral word."""
        return {"params": list(self.raw.values()), "lr": lr, "weight_decay": 0.0}


def embedding_for_class(
    base: StableDiffusion, class_noun: str, start: Mapping[str, np.ndarray] | None = None
) -> TokenEmbedding:
    """Build one embedding per CLIP token of the class noun, starting as that noun's; or those of a concept to continue,
    `start`."""
    count = max(len(encoder.ids(class_noun)) for encoder in base.encoders.values())
    return TokenEmbedding(base, class_noun, min(count or 1, MAX_CLASS_VECTORS), start)


def insert_embeddings(caption: str, embeddings: Mapping[str, Tensor]) -> CaptionPieces:
    """Split "a photo of {}" into the pieces that `encode_captions` takes."""
    before, after = caption.split("{}")
    return [before, embeddings, after]


def insert_noun(noun: str) -> CaptionSplitter:
    """Return a splitter that writes a noun for the subject, as prior preservation does."""
    return lambda caption: [caption.replace("{}", noun)]


def clip_norm(embeddings: Tensor, max_norm: float) -> Tensor:
    """Scale embeddings (n, width) to a norm of at most `max_norm`, keeping their directions."""
    return embeddings * (max_norm / embeddings.norm(dim=1, keepdim=True)).clamp(max=1.0)


def max_embedding_norm(encoder: TextEncoder) -> float:
    """Return the largest norm in the vocabulary."""
    return float(encoder.token_embeddings.float().norm(dim=1).max())
