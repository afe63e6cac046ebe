"""Look up a prompt's concepts, and determine which of them are active at each step of the sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..concepts.concept import Concept, Lora
from ..errors import UserError
from ..models import Segment, StableDiffusion
from ..prompts import Break, ConceptRef, Mention, Prompt, Text, Token, parse


class ConceptSource(Protocol):
    """Looks up concepts by token: a Library, or anything that has `get`."""

    def get(self, token: Token) -> Concept: ...


class NoConcepts:
    """A source without concepts, for prompts without tokens."""

    def get(self, token: Token) -> Concept:
        raise UserError(f"There is no concept {token} here.", "Open a library that has it.")


@dataclass(frozen=True)
class LoraWeight:
    """A concept at a strength. It is identified by its bytes, so copies of a concept are equal."""

    identity: str
    strength: float


@dataclass(frozen=True)
class ConceptSegment:
    """A concept reference of a prompt, with its strengths at one step."""

    weights: tuple[LoraWeight, ...]
    weight: float


StepSegments = tuple[Text | ConceptSegment | Break, ...]
"""A prompt at one step: its embeddings depend on nothing else but the LoRA adapters."""


@dataclass(frozen=True)
class ResolvedPrompt:
    """A prompt with its concepts, keyed by the token as written."""

    prompt: Prompt
    concepts: Mapping[Token, Concept]

    def at(self, progress: float) -> StepSegments:
        """Return the prompt as it is at a step. moment: progress of the sampling, 0 (noise) to 1 (image)."""
        return tuple(
            self._segment(piece, progress) if isinstance(piece, ConceptRef) else piece for piece in self.prompt.pieces
        )

    def _segment(self, word: ConceptRef, progress: float) -> ConceptSegment:
        is_active = is_active_at(word, progress)
        lora_weights = (
            LoraWeight(self.concepts[part.token].identity, part.strength if is_active else 0.0) for part in word.parts
        )
        return ConceptSegment(tuple(lora_weights), word.weight)

    def loras_at(self, progress: float) -> tuple[LoraWeight, ...]:
        """Return the active LoRAs; one that is mentioned repeatedly has its strength farthest from 0."""
        strengths: dict[str, float] = {}
        for word in self.words:
            for part in word.parts if is_active_at(word, progress) else ():
                concept = self.concepts[part.token]
                if concept.lora and part.strength:
                    strengths[concept.identity] = _farther(strengths.get(concept.identity, 0.0), part.strength)
        return tuple(LoraWeight(*item) for item in strengths.items())

    @property
    def words(self) -> Iterator[ConceptRef]:
        return (piece for piece in self.prompt.pieces if isinstance(piece, ConceptRef))

    @property
    def windows(self) -> frozenset[tuple[float, float]]:
        return frozenset((word.start, word.end) for word in self.words)

    def strongest_uses(self) -> dict[str, tuple[Concept, float]]:
        """Return the concepts by full token, with the strength farthest from 0 that they are mentioned with."""
        used_concepts: dict[str, tuple[Concept, float]] = {}
        for mention in self.prompt.mentions:
            concept = self.concepts[mention.token]
            _, so_far = used_concepts.get(str(concept.token), (concept, 0.0))
            used_concepts[str(concept.token)] = concept, _farther(so_far, mention.strength)
        return used_concepts


def _farther(one: float, other: float) -> float:
    """Return the strength farther from 0; the positive one if both are equally far."""
    return max(one, other, key=lambda strength: (abs(strength), strength))


def is_active_at(word: ConceptRef, progress: float) -> bool:
    return word.start <= progress < word.end


class PromptResolver:
    """Looks up the concepts of prompts, once each, and converts them to what the base takes."""

    def __init__(self, base: StableDiffusion, concepts: ConceptSource):
        self._base, self._concepts = base, concepts
        self._concepts_by_identity: dict[str, Concept] = {}

    def resolve(self, text: str) -> ResolvedPrompt:
        """Parse a prompt and look up its concepts. Raises UserError for an unknown concept or one of another base."""
        prompt = parse(text)
        return ResolvedPrompt(prompt, {mention.token: self.concept(mention) for mention in prompt.mentions})

    def concept(self, mention: Mention) -> Concept:
        concept = self._concepts.get(mention.token)
        if concept.identity not in self._concepts_by_identity:
            self._check(concept)
            self._concepts_by_identity[concept.identity] = concept
        return self._concepts_by_identity[concept.identity]

    def loras(self, mix: tuple[LoraWeight, ...]) -> list[tuple[Lora, float]]:
        """Return the LoRAs and strengths of a mix, as `LoraAdapters.fill` takes them."""
        return [(self._concepts_by_identity[share.identity].lora, share.strength) for share in mix]

    def segments(self, script: StepSegments) -> list[Segment | Break]:
        """Return the segments of a prompt, as `base.read` takes them."""
        return [segment for piece in script for segment in self._segments(piece)]

    def _segments(self, piece: Text | ConceptSegment | Break) -> list[Segment | Break]:
        if isinstance(piece, Break):
            return [piece]
        if isinstance(piece, Text):
            return [Segment(piece.text, piece.weight)]
        parts = [(self._concepts_by_identity[share.identity], share.strength) for share in piece.weights]
        return [Segment(text_or_vectors, piece.weight) for text_or_vectors in resolve_concepts(self._base, parts)]

    def _check(self, concept: Concept) -> None:
        check_kind(concept, self._base.kind)
        for key, width in self._base.widths.items():
            vectors = concept.vectors.get(key)
            if vectors is not None and vectors.shape[1] != width:
                raise UserError(
                    f"{concept.token} has vectors of width {vectors.shape[1]}; the loaded base takes {width}.",
                    "Train it again on this base.",
                )
        if concept.lora:
            self._base.adapters.check(concept.lora, str(concept.token))


def check_kind(concept: Concept, kind: str) -> None:
    """Raise UserError if the concept was made for another kind of base."""
    if concept.card.base != kind:
        raise UserError(
            f"{concept.token} was made for the base {concept.card.base}; the loaded one is {kind}.",
            f"Draw with --base {concept.card.base}, or train it again on this one.",
        )


def check_makes_few_steps_enough(concept: Concept) -> None:
    """Raise UserError if the concept of --fast has no LoRA."""
    if concept.lora is None:
        raise UserError(f"{concept.token} has no LoRA, so it cannot make few steps enough.")


def resolve_concepts(base: StableDiffusion, parts: list[tuple[Concept, float]]) -> list[str | dict[str, Tensor]]:
    """Return what replaces the concepts of one reference in a prompt: their vectors, their trigger words, or nothing.

    If all have vectors, and equally many, these are combined: the mean of their class nouns' embeddings, weighted by
    the absolute strengths, plus each concept's difference from its class noun times its strength. If no strength is
    negative, that is the average of the vectors weighted by the strengths. Otherwise the concepts follow each other.
    """
    pieces = [
        embeddings_at_strength(base, concept, strength) if concept.vectors else " ".join(concept.card.trigger_words)
        for concept, strength in parts
    ]
    blocks = [piece for piece in pieces if not isinstance(piece, str)]
    if (
        len(blocks) < 2
        or len(blocks) < len(pieces)
        or len({len(rows) for block in blocks for rows in block.values()}) > 1
    ):
        return pieces
    total = sum(abs(strength) for _, strength in parts)
    weights = [abs(strength) / total if total else 1 / len(parts) for _, strength in parts]
    word_vectors = [
        embeddings_at_strength(base, concept, math.copysign(total, strength)) for concept, strength in parts
    ]
    return [
        {key: sum(w * block[key] for w, block in zip(weights, word_vectors, strict=True)) for key in word_vectors[0]}
    ]


def embeddings_at_strength(base: StableDiffusion, concept: Concept, strength: float) -> dict[str, Tensor]:
    """Return a concept's vectors at a strength.

    They are interpolated from the class noun's embeddings, where training started, at 0, to the trained vectors at 1,
    and extrapolated beyond and below 0. Without a known class noun they are the vectors times the strength.
    """
    trained = {key: torch.from_numpy(vectors) for key, vectors in concept.vectors.items()}
    if strength == 1:
        return trained
    initial = {key: _initial_embeddings(base, key, concept, vectors) for key, vectors in trained.items()}
    return {key: initial[key] + strength * (vectors - initial[key]) for key, vectors in trained.items()}


def _initial_embeddings(base: StableDiffusion, key: str, concept: Concept, rows: Tensor) -> Tensor:
    try:
        return base.encoders[key].initial_embeddings(concept.card.class_noun, len(rows)).cpu()
    except UserError:  # no noun, or none with a word in it
        return torch.zeros_like(rows)
