"""Prompts to what the UNet reads: CLIP, with concepts' vectors put in at the output of its token embedding.

The tokenizer and the embedding table are never changed (Gal et al. 2022, arXiv 2208.01618, figure 2): text between the
vectors is tokenised, the vectors stand in for the embeddings of the positions between, for that one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import PersonalError
from ..prompts import show

Piece = str | Tensor
"""A stretch of text, or vectors (n, width) that stand where a word would."""

_STAND_IN = 0  # any id below the end-of-text's: CLIP pools at the highest id


@dataclass(frozen=True)
class _Layout:
    ids: list[int]  # one per position, padded to the context length
    vectors: list[tuple[int, Tensor]]  # (first position, (n, width))


class TextEncoder:
    """One CLIP tokenizer and text model."""

    def __init__(self, tokenizer, model: nn.Module):
        self.tokenizer = tokenizer
        self.model = model
        self.length: int = tokenizer.model_max_length

    @property
    def table(self) -> Tensor:
        """The frozen token embeddings, (vocabulary, width)."""
        return self.model.get_input_embeddings().weight

    @property
    def width(self) -> int:
        return self.table.shape[1]

    def ids(self, text: str) -> list[int]:
        """Token ids of a stretch of text, without start and end."""
        return self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids

    def vectors_of(self, words: str) -> Tensor:
        """The embeddings of some words, (tokens, width), fp32."""
        ids = self.ids(words)
        if not ids:
            raise PersonalError(f"{show(repr(words))} holds no word.", "Give a word or two, such as 'toy duck'.")
        return self.table[ids].detach().float()

    def __call__(self, prompts: Sequence[Sequence[Piece]]) -> Tensor:
        """Last hidden states (B, 77, width). Gradients reach the vectors. Raises PersonalError if a prompt is too
        long."""
        return self._run(prompts).last_hidden_state

    def penultimate(self, prompts: Sequence[Sequence[Piece]]) -> tuple[Tensor, Tensor | None]:
        """The last but one layer's states (B, 77, width), without the final norm, and the projection of the end of
        text (B, d) where this model has one: what SDXL reads. Gradients and errors as above."""
        answer = self._run(prompts, output_hidden_states=True)
        return answer.hidden_states[-2], getattr(answer, "text_embeds", None)

    def _run(self, prompts: Sequence[Sequence[Piece]], **options: bool):
        layouts = [self._lay_out(pieces) for pieces in prompts]
        ids = torch.tensor([layout.ids for layout in layouts], device=self.table.device)  # (B, 77)
        with _spliced(self.model.get_input_embeddings(), layouts):
            return self.model(ids, **options)

    def _lay_out(self, pieces: Sequence[Piece]) -> _Layout:
        ids, vectors = [self.tokenizer.bos_token_id], []
        for piece in pieces:
            if isinstance(piece, str):
                ids += self.ids(piece)
            else:
                vectors.append((len(ids), piece))
                ids += [_STAND_IN] * len(piece)
        self._check_length(ids)
        ids.append(self.tokenizer.eos_token_id)
        return _Layout(ids + [self.tokenizer.pad_token_id] * (self.length - len(ids)), vectors)

    def _check_length(self, ids: list[int]) -> None:
        room = self.length - 1  # the end of text needs one
        if len(ids) > room:
            rest = self.tokenizer.decode(ids[room:]).strip()
            raise PersonalError(
                f"The prompt has {len(ids) - 1} tokens and {room - 1} fit; too much from {show(repr(rest), 60)} on.",
                "Shorten it.",
            )


@contextmanager
def _spliced(embedding: nn.Module, layouts: list[_Layout]) -> Iterator[None]:
    rows = [
        (b, at + i, row) for b, one in enumerate(layouts) for at, block in one.vectors for i, row in enumerate(block)
    ]
    if not rows:
        yield
        return
    batch, position, values = zip(*rows, strict=True)

    def put(_module: nn.Module, _args: tuple, out: Tensor) -> Tensor:
        where = (torch.tensor(batch, device=out.device), torch.tensor(position, device=out.device))
        return out.index_put(where, torch.stack(values).to(out))

    hook = embedding.register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()
