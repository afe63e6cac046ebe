"""Look up a prompt's concepts, and determine which of them are active at each step of the sampling."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..concepts.concept import Concept, Lora
from ..concepts.lora_blocks import with_block_weights
from ..config import ConceptKind
from ..errors import UserError
from ..models import Segment, StableDiffusion, Vectors
from ..prompts import BlockWeights, Break, ConceptRef, Mention, Prompt, Text, Token, format_prompt, parse

Piece = Text | ConceptRef | Break
"""A piece of a prompt."""


class ConceptSource(Protocol):
    """Looks up concepts by token: a Library, or anything that has `get`."""

    def get(self, token: Token) -> Concept: ...


class NoConcepts:
    """A source without concepts, for prompts without tokens."""

    def get(self, token: Token) -> Concept:
        raise UserError(f"There is no concept {token}: no library is open.", "Open a library that contains it.")


@dataclass(frozen=True)
class LoraWeight:
    """A concept's LoRA at a strength. It is identified by the concept's bytes, so copies of a concept are equal.

    lora: scaled by the weights of its `blocks` already.
    """

    identity: str
    strength: float
    lora: Lora = field(compare=False, repr=False)
    blocks: BlockWeights | None = None


@dataclass(frozen=True)
class ResolvedPrompt:
    """A prompt with its concepts, keyed by the token as written.

    progress, in its methods: of the sampling, 0 (noise) to 1 (image).
    """

    prompt: Prompt
    concepts: Mapping[Token, Concept]

    @property
    def references(self) -> tuple[ConceptRef, ...]:
        return tuple(piece for piece in self.prompt.pieces if isinstance(piece, ConceptRef))

    @property
    def positions(self) -> list[int]:
        """The indices of the references among the prompt's pieces."""
        return [i for i, piece in enumerate(self.prompt.pieces) if isinstance(piece, ConceptRef)]

    def index_of(self, reference: ConceptRef) -> int:
        """Return the index of this very reference among the prompt's; others may be equal."""
        return next(i for i, other in enumerate(self.references) if other is reference)

    def identity(self, reference: ConceptRef) -> tuple[str, ...]:
        return tuple(self.concepts[part.token].identity for part in reference.parts)

    def kinds(self, reference: ConceptRef) -> set[ConceptKind]:
        return {self.concepts[part.token].card.kind for part in reference.parts}

    def with_pieces(self, pieces: Sequence[Piece]) -> ResolvedPrompt:
        """Return the prompt that consists of some pieces of this one. Spaces are added where pieces were between."""
        spaced: list[Piece] = []
        for piece in pieces:
            if spaced and _needs_space(spaced[-1], piece):
                spaced.append(Text(" ", piece.weight if isinstance(piece, ConceptRef) else 1.0))
            spaced.append(piece)
        prompt = Prompt("", tuple(spaced))
        prompt = replace(prompt, text=format_prompt(prompt))
        return ResolvedPrompt(prompt, {mention.token: self.concepts[mention.token] for mention in prompt.mentions})

    @property
    def cache_key(self) -> tuple[Hashable, ...]:
        """What its embeddings depend on, besides `active_at` and the LoRA adapters. Copies of a concept are equal, but
        not two with the same tensors and other words on their cards."""
        concepts = [self.concepts[mention.token] for mention in self.prompt.mentions]
        return self.prompt, tuple((c.identity, c.card.class_noun, c.card.trigger_words) for c in concepts)

    def active_at(self, progress: float) -> tuple[float, ...]:
        """Return the strength of every mention at a step, 0 where it is not active."""
        return tuple(strength_at(ref, part, progress) for ref in self.references for part in ref.parts)

    def segments_at(self, base: StableDiffusion, progress: float) -> list[Segment | Break]:
        """Return the prompt as it is at a step, for `base.encode_prompt`."""
        segments: list[Segment | Break] = []
        for piece in self.prompt.pieces:
            if isinstance(piece, Break):
                segments.append(piece)
            elif isinstance(piece, Text):
                segments.append(Segment(piece.text, piece.weight))
            else:
                parts = [(self.concepts[part.token], strength_at(piece, part, progress)) for part in piece.parts]
                segments += [Segment(content, piece.weight) for content in resolve_concepts(base, parts)]
        return segments

    def marked_segments(self, base: StableDiffusion, index: int) -> list[Segment | Break]:
        """Return the prompt with weight 2 for the piece at an index and 0 for all others, to find its positions."""
        segments: list[Segment | Break] = []
        for i, piece in enumerate(self.prompt.pieces):
            marked = piece if isinstance(piece, Break) else replace(piece, weight=2.0 if i == index else 0.0)
            segments += replace(self, prompt=replace(self.prompt, pieces=(marked,))).segments_at(base, 0.5)
        return segments

    def loras_at(self, progress: float) -> tuple[LoraWeight, ...]:
        """Return the active LoRAs; one that is mentioned repeatedly is as in its mention farthest from strength 0."""
        loras: dict[str, LoraWeight] = {}
        for reference in self.references:
            for part in reference.parts:
                lora, strength = self._loras.get((part.token, part.blocks)), strength_at(reference, part, progress)
                if lora and strength:
                    identity = self.concepts[part.token].identity
                    weight = LoraWeight(identity, strength, lora, part.blocks)
                    loras[identity] = max(loras.get(identity, weight), weight, key=_precedence)
        return tuple(loras.values())

    @cached_property
    def _loras(self) -> dict[tuple[Token, BlockWeights | None], Lora]:
        """The LoRAs by token and block weights, with those weights; without any that change nothing."""
        loras: dict[tuple[Token, BlockWeights | None], Lora] = {}
        for mention in self.prompt.mentions:
            lora = self.concepts[mention.token].lora
            if lora and mention.blocks:
                lora = with_block_weights(lora, mention.blocks)
            if lora and (lora.layers or lora.changes):
                loras[mention.token, mention.blocks] = lora
        return loras

    def strongest_uses(self) -> dict[str, tuple[Concept, float]]:
        """Return the concepts by full token, with the strength farthest from 0 that they are mentioned with."""
        uses: dict[str, tuple[Concept, float]] = {}
        for mention in self.prompt.mentions:
            concept = self.concepts[mention.token]
            _, earlier = uses.get(str(concept.token), (concept, 0.0))
            uses[str(concept.token)] = concept, _farther_from_zero(earlier, mention.strength)
        return uses


def _needs_space(before: Piece, after: Piece) -> bool:
    """Return whether two pieces would read as one word. It makes no difference to the text encoder."""
    if isinstance(before, Break) or isinstance(after, Break):
        return False
    ends = isinstance(before, ConceptRef) or not before.text[-1:].isspace()
    return ends and (isinstance(after, ConceptRef) or after.text[:1].isalnum())


def _farther_from_zero(*strengths: float) -> float:
    """Return the strength farthest from 0; the positive one if two are equally far."""
    return max(strengths, key=lambda strength: (abs(strength), strength))


def _precedence(weight: LoraWeight) -> tuple[float, float, tuple[float, ...]]:
    """Return a key by which one mention of a LoRA is chosen, whatever their order."""
    blocks = weight.blocks or BlockWeights()
    return abs(weight.strength), weight.strength, blocks.values


def strength_at(reference: ConceptRef, mention: Mention, progress: float) -> float:
    """Return the strength of one of the reference's concepts at a step: 0 outside its window, else along its ramp."""
    if not is_active_at(reference, progress):
        return 0.0
    first, last = mention.ramp
    share = (progress - reference.start) / (reference.end - reference.start)
    return mention.strength * (first + share * (last - first)) + 0.0


def is_active_at(reference: ConceptRef, progress: float) -> bool:
    return reference.start <= progress < reference.end


class PromptResolver:
    """Looks up the concepts of prompts, once each, and checks that they fit the base."""

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
            f"{concept.token} was made for the base {concept.card.base}; the loaded base is {kind}.",
            f"Use --base {concept.card.base}, or train the concept again on this one.",
        )


def check_makes_few_steps_enough(concept: Concept) -> None:
    """Raise UserError if the concept of --fast has no LoRA."""
    if concept.lora is None:
        raise UserError(f"{concept.token} has no LoRA; --fast needs an LCM or TCD LoRA.")


def resolve_concepts(base: StableDiffusion, parts: list[tuple[Concept, float]]) -> list[str | Vectors]:
    """Return what replaces the concepts of one reference in a prompt: their vectors, their trigger words, or nothing.

    If all have vectors, and equally many, these are combined: the mean of their class nouns' embeddings, weighted by
    the absolute strengths, plus each concept's difference from its class noun times its strength. If no strength is
    negative, that is the average of the vectors weighted by the strengths. Otherwise the concepts follow each other.
    """
    if len(parts) > 1 and _have_equally_many_vectors([concept for concept, _ in parts]):
        return [_blend(base, parts)]
    return [
        embeddings_at_strength(base, concept, strength) if concept.vectors else " ".join(concept.card.trigger_words)
        for concept, strength in parts
    ]


def _have_equally_many_vectors(concepts: list[Concept]) -> bool:
    counts = {len(vectors) for concept in concepts for vectors in concept.vectors.values()}
    return all(concept.vectors for concept in concepts) and len(counts) == 1


def _blend(base: StableDiffusion, parts: list[tuple[Concept, float]]) -> Vectors:
    total = sum(abs(strength) for _, strength in parts)
    weights = [abs(strength) / total if total else 1 / len(parts) for _, strength in parts]
    scaled = [embeddings_at_strength(base, concept, math.copysign(total, strength)) for concept, strength in parts]
    return {
        key: sum((w * vectors[key] for w, vectors in zip(weights, scaled, strict=True)), start=torch.zeros(()))
        for key in scaled[0]
    }


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


def _initial_embeddings(base: StableDiffusion, key: str, concept: Concept, vectors: Tensor) -> Tensor:
    try:
        return base.encoders[key].initial_embeddings(concept.card.class_noun, len(vectors)).cpu()
    except UserError:  # no noun, or none with a word in it
        return torch.zeros_like(vectors)
