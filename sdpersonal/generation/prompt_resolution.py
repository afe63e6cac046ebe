"""A prompt with its concepts found, and what of it acts at each moment of the sampling."""

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
    """Where a prompt's tokens lead: a Library, or anything that has `get`."""

    def get(self, token: Token) -> Concept: ...


class NoConcepts:
    """For prompts without tokens."""

    def get(self, token: Token) -> Concept:
        raise UserError(f"There is no concept {token} here.", "Open a library that has it.")


@dataclass(frozen=True)
class LoraWeight:
    """A concept at a strength; of two, the same if they are the same bytes."""

    identity: str
    strength: float


@dataclass(frozen=True)
class ConceptSegment:
    """A word of a prompt as it stands at one moment."""

    weights: tuple[LoraWeight, ...]
    weight: float


StepSegments = tuple[Text | ConceptSegment | Break, ...]
"""A prompt as it stands at one moment: what a conditioning depends on, besides the slots."""


@dataclass(frozen=True)
class ResolvedPrompt:
    """A prompt with its concepts, by the token as written."""

    prompt: Prompt
    concepts: Mapping[Token, Concept]

    def script(self, moment: float) -> StepSegments:
        """moment: 0 (noise) to 1 (picture)."""
        return tuple(
            self._said(piece, moment) if isinstance(piece, ConceptRef) else piece for piece in self.prompt.pieces
        )

    def _said(self, word: ConceptRef, moment: float) -> ConceptSegment:
        acts = is_active_at(word, moment)
        shares = (LoraWeight(self.concepts[part.token].identity, part.strength if acts else 0.0) for part in word.parts)
        return ConceptSegment(tuple(shares), word.weight)

    def mix(self, moment: float) -> tuple[LoraWeight, ...]:
        """Each LoRA once, with the strength farthest from 0 that it has at this moment."""
        strengths: dict[str, float] = {}
        for word in self.words:
            for part in word.parts if is_active_at(word, moment) else ():
                concept = self.concepts[part.token]
                if concept.lora and part.strength:
                    strengths[concept.identity] = _farther(strengths.get(concept.identity, 0.0), part.strength)
        return tuple(LoraWeight(*one) for one in strengths.items())

    @property
    def words(self) -> Iterator[ConceptRef]:
        return (piece for piece in self.prompt.pieces if isinstance(piece, ConceptRef))

    @property
    def windows(self) -> frozenset[tuple[float, float]]:
        return frozenset((word.start, word.end) for word in self.words)

    def used(self) -> dict[str, tuple[Concept, float]]:
        """Each concept once, by its full token, with the strength farthest from 0 that it is mentioned with."""
        found: dict[str, tuple[Concept, float]] = {}
        for mention in self.prompt.mentions:
            concept = self.concepts[mention.token]
            _, so_far = found.get(str(concept.token), (concept, 0.0))
            found[str(concept.token)] = concept, _farther(so_far, mention.strength)
        return found


def _farther(one: float, other: float) -> float:
    """The strength farther from 0; of two that are equally far the positive one."""
    return max(one, other, key=lambda strength: (abs(strength), strength))


def is_active_at(word: ConceptRef, moment: float) -> bool:
    return word.start <= moment < word.end


class PromptResolver:
    """Finds the concepts of prompts, once each, and says what the base makes of them."""

    def __init__(self, base: StableDiffusion, concepts: ConceptSource):
        self._base, self._concepts = base, concepts
        self._concepts_by_identity: dict[str, Concept] = {}  # by identity

    def read(self, text: str) -> ResolvedPrompt:
        """Raises UserError for an unknown concept or one of another base."""
        prompt = parse(text)
        return ResolvedPrompt(prompt, {mention.token: self.concept(mention) for mention in prompt.mentions})

    def concept(self, mention: Mention) -> Concept:
        concept = self._concepts.get(mention.token)
        if concept.identity not in self._concepts_by_identity:
            self._check(concept)
            self._concepts_by_identity[concept.identity] = concept
        return self._concepts_by_identity[concept.identity]

    def loras(self, mix: tuple[LoraWeight, ...]) -> list[tuple[Lora, float]]:
        """What the slots take."""
        return [(self._concepts_by_identity[share.identity].lora, share.strength) for share in mix]

    def segments(self, script: StepSegments) -> list[Segment | Break]:
        """What `base.read` takes."""
        return [one for piece in script for one in self._segments(piece)]

    def _segments(self, piece: Text | ConceptSegment | Break) -> list[Segment | Break]:
        if isinstance(piece, Break):
            return [piece]
        if isinstance(piece, Text):
            return [Segment(piece.text, piece.weight)]
        parts = [(self._concepts_by_identity[share.identity], share.strength) for share in piece.weights]
        return [Segment(one, piece.weight) for one in resolve_concepts(self._base, parts)]

    def _check(self, concept: Concept) -> None:
        check_kind(concept, self._base.kind)
        for key, width in self._base.widths.items():
            rows = concept.vectors.get(key)
            if rows is not None and rows.shape[1] != width:
                raise UserError(
                    f"{concept.token} has vectors of width {rows.shape[1]}; the loaded base takes {width}.",
                    "Train it again on this base.",
                )
        if concept.lora:
            self._base.adapters.check(concept.lora, str(concept.token))


def check_kind(concept: Concept, kind: str) -> None:
    """Raise UserError where the concept was made for another kind of base."""
    if concept.card.base != kind:
        raise UserError(
            f"{concept.token} was made for the base {concept.card.base}; the loaded one is {kind}.",
            f"Draw with --base {concept.card.base}, or train it again on this one.",
        )


def check_makes_few_steps_enough(concept: Concept) -> None:
    """Raise UserError where the concept of --fast has no LoRA."""
    if concept.lora is None:
        raise UserError(f"{concept.token} has no LoRA, so it cannot make few steps enough.")


def resolve_concepts(base: StableDiffusion, parts: list[tuple[Concept, float]]) -> list[str | dict[str, Tensor]]:
    """What concepts at strengths are in a prompt, one word of it: their vectors, or their trigger words, or nothing.

    Vectors of several that have as many become one: the mean of their class nouns, weighted by how far each concept is
    from 0, and all their ways from there, each times its strength. Where no strength is negative that is the average of
    the vectors by their strengths. Others follow each other.
    """
    stretches = [
        embeddings_at_strength(base, concept, strength) if concept.vectors else " ".join(concept.card.trigger_words)
        for concept, strength in parts
    ]
    blocks = [one for one in stretches if not isinstance(one, str)]
    if len(blocks) < 2 or len(blocks) < len(stretches) or len({len(row) for one in blocks for row in one.values()}) > 1:
        return stretches
    total = sum(abs(strength) for _, strength in parts)
    weights = [abs(strength) / total if total else 1 / len(parts) for _, strength in parts]
    whole = [embeddings_at_strength(base, concept, math.copysign(total, strength)) for concept, strength in parts]
    return [{key: sum(w * one[key] for w, one in zip(weights, whole, strict=True)) for key in whole[0]}]


def embeddings_at_strength(base: StableDiffusion, concept: Concept, strength: float) -> dict[str, Tensor]:
    """A concept's vectors at a strength: on the way from its class noun, where they began to learn, at 0, to what was
    learned at 1, and beyond; below 0 the same way in the other direction. Of a concept whose noun nobody knows: the
    vectors times the strength."""
    learned = {key: torch.from_numpy(rows) for key, rows in concept.vectors.items()}
    if strength == 1:
        return learned
    start = {key: _initial_embeddings(base, key, concept, rows) for key, rows in learned.items()}
    return {key: start[key] + strength * (rows - start[key]) for key, rows in learned.items()}


def _initial_embeddings(base: StableDiffusion, key: str, concept: Concept, rows: Tensor) -> Tensor:
    try:
        return base.encoders[key].initial_embeddings(concept.card.class_noun, len(rows)).cpu()
    except UserError:  # no noun, or none with a word in it
        return torch.zeros_like(rows)
