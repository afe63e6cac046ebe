"""Define the parts of a parsed prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from .block_weights import BlockWeights
from .tokens import Token


@dataclass(frozen=True)
class Mention:
    """One concept and its strength (-5 to 5).

    blocks: weights for the blocks of its LoRA, None for 1 everywhere; ramp: factors of the strength at the beginning
    and at the end of the reference's window, linear in between.
    """

    token: Token
    strength: float = 1.0
    blocks: BlockWeights | None = None
    ramp: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Text:
    """A stretch of plain text, unescaped. weight: its emphasis."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Region:
    """A part of the image, as fractions of its width and height from the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class ConceptRef:
    """A reference to a concept, or to a blend of several.

    start, end: the part of the sampling in which it acts, as fractions (0 is pure noise); weight: its emphasis;
    guidance: the scale of its own guidance, None for the default of its kind; region: where it is to be, None for
    anywhere.
    """

    parts: tuple[Mention, ...]
    start: float = 0.0
    end: float = 1.0
    weight: float = 1.0
    guidance: float | None = None
    region: Region | None = None


@dataclass(frozen=True)
class Break:
    """A BREAK: the text after it begins a new chunk of 75 tokens of the text encoder."""


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt. Two are equal when they mean the same, however they were typed.

    text: as typed; pieces: in order, neighbouring texts of equal weight joined, none empty.
    """

    text: str = field(compare=False)
    pieces: tuple[Text | ConceptRef | Break, ...]

    @property
    def mentions(self) -> tuple[Mention, ...]:
        """Return every concept in order, those of a blend one by one."""
        return tuple(part for piece in self.pieces if isinstance(piece, ConceptRef) for part in piece.parts)
