"""What a prompt is made of, once it is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from .tokens import Token


@dataclass(frozen=True)
class Mention:
    """One concept, and how strongly it is wanted (-5 to 5)."""

    token: Token
    strength: float = 1.0


@dataclass(frozen=True)
class Text:
    """A stretch of plain text, its escapes undone. weight: its emphasis."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class ConceptRef:
    """Where a concept stands, or a blend of several.

    start, end: the part of the sampling in which it acts, as fractions (0 is pure noise); weight: its emphasis.
    """

    parts: tuple[Mention, ...]
    start: float = 0.0
    end: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True)
class Break:
    """What follows begins a new chunk of the text encoder's 75 tokens."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as read. Two are equal when they mean the same, however they were typed.

    text: as typed; pieces: in order, neighbouring texts of one weight joined, none empty.
    """

    text: str = field(compare=False)
    pieces: tuple[Text | ConceptRef | Break, ...]

    @property
    def mentions(self) -> tuple[Mention, ...]:
        """Every concept, in order; a blend's one by one."""
        return tuple(part for piece in self.pieces if isinstance(piece, ConceptRef) for part in piece.parts)
