"""Encode prompts with CLIP; concepts' vectors are inserted at the output of its token embedding.

The tokenizer and the embedding table are never changed (Gal et al. 2022, arXiv 2208.01618, figure 2): text between the
vectors is tokenised, and the vectors replace the embeddings at their positions, for that one call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import UserError, printable
from ..prompts import Break

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase

Vectors = Mapping[str, Tensor]
"""A concept's vectors for each text encoder of a base: "clip_l" -> (n, width)."""


@dataclass(frozen=True)
class Segment:
    """A part of a prompt at one step: text, or a concept's vectors in its place.

    weight: the emphasis; the hidden states at the segment's positions are multiplied by it.
    """

    content: str | Vectors
    weight: float = 1.0

    @property
    def is_blank(self) -> bool:
        return isinstance(self.content, str) and not self.content.strip()


# CLIP's tokenizer never splits these, even if they are not special tokens. It splits punctuation from letters and drops
# spaces between them, so inserting a space there changes nothing else.
_KEPT_WHOLE = re.compile(r"(<\|)(startoftext|endoftext)(\|>)", re.IGNORECASE)
_PLACEHOLDER_ID = 0  # any id below the end-of-text's: CLIP pools at the highest id
_COMMA_BACKTRACK = 20  # tokens: a chunk whose end is at most this far behind a comma ends at the comma, as in A1111


@dataclass
class PromptChunk:
    """The token ids of one context of the text model, filled from the left and completed by `TextEncoder.padded`."""

    ids: list[int] = field(default_factory=list)  # one per position
    weights: list[float] = field(default_factory=list)
    vectors: list[tuple[int, Tensor]] = field(default_factory=list)  # (first position, (n, width))

    def add(self, ids: Sequence[int], weight: float) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)

    def add_vectors(self, vectors: Tensor, weight: float) -> None:
        self.vectors.append((len(self.ids), vectors))
        self.add([_PLACEHOLDER_ID] * len(vectors), weight)


class TokenIds(NamedTuple):
    """Prompts as numbers, (B, 77) integers each.

    ids: of the tokens; vectors: the index of the concept's vector that replaces a token's embedding; -1: none.
    """

    ids: Tensor
    vectors: Tensor


class TextEncoder:
    """A CLIP tokenizer and its text model. key: which of a concept's vectors it reads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: CLIPTextModel, key: str = "clip_l"):
        self.tokenizer = tokenizer
        self.model = model
        self.key = key
        self.length: int = tokenizer.model_max_length
        self.end_of_text: int = tokenizer.eos_token_id
        self._insertion: tuple[Tensor, Tensor] | None = None  # (B, 77) indices of vectors, (n, width) vectors
        self._token_embedding.register_forward_hook(self._insert_vectors)

    @property
    def _token_embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @property
    def token_embeddings(self) -> Tensor:
        """The frozen token embeddings, (vocabulary, width)."""
        return self._token_embedding.weight

    @property
    def width(self) -> int:
        return self.token_embeddings.shape[1]

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, without start and end tokens.

        `<|endoftext|>` and the tokenizer's other special tokens are tokenised as ordinary text: only `padded` adds
        start, end and padding. A padding token that people also write, "!" of SD 2.x and of SDXL's second encoder,
        keeps the id that diffusers' pipelines give it.
        """
        mark = self.tokenizer.pad_token if len(self.tokenizer.pad_token or "") == 1 else None
        ids: list[int] = []
        for i, part in enumerate(text.split(mark) if mark else [text]):
            ids += [self.tokenizer.pad_token_id] if i else []
            ids += self._ids_between_marks(part)
        if ids and max(ids) >= len(self.token_embeddings):
            raise UserError(
                f"The base's tokenizer knows a word in {printable(repr(text), 60)} that its text encoder does not.",
                "Leave the word out, or load a base whose two parts belong together.",
            )
        return ids

    def _ids_between_marks(self, text: str) -> list[int]:
        separated = _KEPT_WHOLE.sub(r"\1 \2 \3", text)
        return self.tokenizer(
            separated, add_special_tokens=False, truncation=False, verbose=False, split_special_tokens=True
        ).input_ids

    def embeddings_of(self, words: str) -> Tensor:
        """Return the token embeddings of a text, (tokens, width), fp32."""
        ids = self.ids(words)
        if not ids:
            raise UserError(f"{printable(repr(words))} has no word.", "Give a word or two, such as 'toy duck'.")
        return self.token_embeddings[ids].detach().float()

    def initial_embeddings(self, words: str, count: int) -> Tensor:
        """Return `count` embeddings made from those of a text, (count, width).

        Too few embeddings are repeated, too many are averaged in groups. Raises UserError for no words.
        """
        embeddings = self.embeddings_of(words)
        if len(embeddings) >= count:
            return torch.stack([group.mean(0) for group in torch.tensor_split(embeddings, count)])
        return embeddings[torch.arange(count) * len(embeddings) // count].clone()

    @property
    def layers(self) -> int:
        return self.model.config.num_hidden_layers

    def hidden_states(self, tokens: TokenIds, vectors: Tensor | None, clip_skip: int = 1) -> Tensor:
        """Return the last hidden states (B, 77, width) of prompts with these vectors (n, width). Gradients reach the
        vectors.

        clip_skip: n takes the n-th layer from the last, then the final norm, as in A1111 (`sd_hijack_clip.py`).
        """
        if clip_skip == 1:
            return self._run(tokens, vectors).last_hidden_state
        return self._final_norm(self._run(tokens, vectors, output_hidden_states=True).hidden_states[-clip_skip])

    def penultimate_hidden_states(
        self, tokens: TokenIds, vectors: Tensor | None, clip_skip: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return what SDXL uses: the last but one layer's states (B, 77, width), without the final norm, and the
        projection of the end of text (B, d), empty if the model has none. Gradients reach the vectors. clip_skip: n
        takes n - 1 layers earlier, as diffusers counts for SDXL; the projection is always of the last layer."""
        output = self._run(tokens, vectors, output_hidden_states=True)
        states = output.hidden_states[-1 - clip_skip]
        return states, getattr(output, "text_embeds", states.new_empty(len(states), 0))

    def _final_norm(self, states: Tensor) -> Tensor:
        text_model = getattr(self.model, "text_model", self.model)  # transformers 5 has no inner model any more
        return text_model.final_layer_norm(states)

    def _run(self, tokens: TokenIds, vectors: Tensor | None, **options: bool):
        self._insertion = None if vectors is None else (tokens.vectors, vectors)
        try:
            return self.model(tokens.ids, **options)
        finally:
            self._insertion = None

    def _insert_vectors(self, _module: nn.Module, _args: tuple, embeddings: Tensor) -> Tensor:
        if self._insertion is None:
            return embeddings
        indices, vectors = self._insertion
        # In one shape whatever the prompts, so that a step can be captured in a CUDA graph.
        inserted = vectors.to(embeddings.dtype)[indices.clamp(min=0)]
        return torch.where((indices >= 0)[..., None], inserted, embeddings)

    def tokenize(self, chunks: Sequence[PromptChunk]) -> tuple[TokenIds, Tensor | None]:
        """Return prompts as numbers, on the CPU, and their distinct vectors, (n, width), in order of appearance; None
        without any."""
        blocks = {id(block): block for chunk in chunks for _, block in chunk.vectors}
        sizes = [len(block) for block in blocks.values()]
        first = dict(zip(blocks, (sum(sizes[:i]) for i in range(len(sizes))), strict=True))
        ids = torch.tensor([chunk.ids for chunk in chunks])  # (B, 77)
        indices = torch.full_like(ids, -1)
        for row, chunk in zip(indices, chunks, strict=True):
            for at, block in chunk.vectors:
                row[at : at + len(block)] = torch.arange(len(block)) + first[id(block)]
        vectors = list(blocks.values())
        return TokenIds(ids, indices), torch.cat(vectors) if len(vectors) > 1 else next(iter(vectors), None)

    def make_chunk(self, segments: Sequence[Segment]) -> PromptChunk:
        """Tokenise a prompt into one context. Raises UserError if it does not fit."""
        chunk = PromptChunk()
        for segment in segments:
            if isinstance(segment.content, str):
                chunk.add(self.ids(segment.content), segment.weight)
            else:
                chunk.add_vectors(segment.content[self.key], segment.weight)
        if len(chunk.ids) > self.capacity:
            excess = str(self.tokenizer.decode(chunk.ids[self.capacity :])).strip()
            raise UserError(
                f"The prompt has {len(chunk.ids)} tokens and {self.capacity} fit; too much from "
                f"{printable(repr(excess), 60)} on.",
                "Shorten it.",
            )
        return self.padded(chunk)

    @property
    def capacity(self) -> int:
        """The number of tokens that fit between start and end."""
        return self.length - 2

    def padded(self, chunk: PromptChunk) -> PromptChunk:
        """Add the start, the end and the padding that the model was trained with."""
        remaining, tokenizer = self.length - 1 - len(chunk.ids), self.tokenizer
        end = [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (remaining - 1)
        vectors = [(at + 1, embeddings) for at, embeddings in chunk.vectors]
        return PromptChunk(
            [tokenizer.bos_token_id, *chunk.ids, *end], [1.0, *chunk.weights, *[1.0] * remaining], vectors
        )

    def chunks(self, segments: Sequence[Segment | Break]) -> list[PromptChunk]:
        """Split a prompt of any length as A1111 does (modules/sd_hijack_clip.py): into chunks of 75 tokens, at a comma
        if one is near, at BREAK, and never within a concept. Raises UserError for vectors that do not fit a chunk."""
        chunker = _Chunker(self.capacity, self.ids(",")[0])
        for segment in segments:
            if isinstance(segment, Break):
                chunker.finish_chunk()
            elif isinstance(segment.content, str):
                for token in self.ids(segment.content):
                    chunker.add(token, segment.weight)
            else:
                chunker.add_vectors(segment.content[self.key], segment.weight)
        return [self.padded(chunk) for chunk in chunker.finish()]


class _Chunker:
    """Fills consecutive chunks of up to `capacity` tokens."""

    def __init__(self, capacity: int, comma: int):
        self._capacity, self._comma = capacity, comma
        self._chunks: list[PromptChunk] = []
        self._chunk, self._comma_position = PromptChunk(), -1

    def add(self, token: int, weight: float) -> None:
        if token == self._comma:
            self._comma_position = len(self._chunk.ids)
        self._ensure_space(may_cut=token != self._comma)
        self._chunk.add([token], weight)

    def add_vectors(self, vectors: Tensor, weight: float) -> None:
        if len(vectors) > self._capacity:
            raise UserError(
                f"A concept of {len(vectors)} vectors does not fit into a prompt, which takes {self._capacity}."
            )
        self._ensure_space()
        if len(self._chunk.ids) + len(vectors) > self._capacity:
            self.finish_chunk()
        self._chunk.add_vectors(vectors, weight)

    def finish_chunk(self) -> None:
        self._chunks.append(self._chunk)
        self._chunk, self._comma_position = PromptChunk(), -1

    def finish(self) -> list[PromptChunk]:
        if self._chunk.ids or not self._chunks:
            self.finish_chunk()
        return self._chunks

    def _ensure_space(self, may_cut: bool = True) -> None:
        size = len(self._chunk.ids)
        if size < self._capacity:
            return
        if may_cut and self._comma_position >= 0 and size - self._comma_position <= _COMMA_BACKTRACK:
            self._chunk, remainder = _split_chunk(self._chunk, self._comma_position + 1)
            self.finish_chunk()
            self._chunk = remainder
            if len(remainder.ids) < self._capacity:
                return
        self.finish_chunk()


def _split_chunk(chunk: PromptChunk, at: int) -> tuple[PromptChunk, PromptChunk]:
    """Split a chunk in two before a position."""
    before = PromptChunk(chunk.ids[:at], chunk.weights[:at], [block for block in chunk.vectors if block[0] < at])
    moved = [(first - at, embeddings) for first, embeddings in chunk.vectors if first >= at]
    return before, PromptChunk(chunk.ids[at:], chunk.weights[at:], moved)


def emphasis_of(chunks: Sequence[PromptChunk]) -> Tensor | None:
    """Return the weights of prompts' tokens, (B, 77); None if all are 1."""
    weights = torch.tensor([chunk.weights for chunk in chunks])
    return None if bool((weights == 1).all()) else weights


def apply_emphasis(states: Tensor, weights: Tensor | None) -> Tensor:
    """Multiply states (B, 77, width) by their weights, then restore each prompt's mean (A1111's sd_emphasis.py)."""
    if weights is None:
        return states
    weighted = states * weights[:, :, None]
    # The ratio is per prompt: the result must not depend on the rest of the batch.
    ratio = states.mean(dim=(1, 2)) / weighted.mean(dim=(1, 2))
    # A mean near zero says nothing about the magnitude, and dividing by it could flip the states' sign.
    ratio = torch.where((ratio > 0.5) & (ratio < 2), ratio, torch.ones_like(ratio))
    return weighted * ratio[:, None, None]
