"""Pieces to a prompt that reads as the same pieces."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import groupby, pairwise

from .ast import Break, Prompt, Text, Word

_BREAK = "BREAK"
_SIGNS = re.compile(r"[()\[\]\\{}<]|(?<=_)_|_(?=_)")
# A sign of its own before and after: a letter would make another word of it.
_SHOUTED = re.compile(r"(?<![^\W_])(BREAK|AND)(?![^\W_])")


def written(prompt: Prompt) -> str:
    """A prompt with the same pieces, in which nothing is left to be chosen: `parse(written(prompt)) == prompt`.

    May be longer than what was typed: each stretch of one weight is put in brackets of its own.
    """
    groups = groupby(prompt.pieces, key=lambda piece: None if isinstance(piece, Break) else piece.weight)
    stretches: list[str] = []
    for weight, pieces in groups:
        stretches += [_BREAK for _ in pieces] if weight is None else [_stretch("".join(map(_piece, pieces)), weight)]
    said = "".join(stretches[:1])
    for before, after in pairwise(stretches):
        said += _between(before, after) + after
    return said


def _between(before: str, after: str) -> str:
    if _BREAK not in (before, after):
        return ""
    # BREAK takes the spaces beside it with it; a backslash keeps them.
    return "\\" if before[-1].isspace() or after[0].isspace() else " "


def _stretch(inner: str, weight: float) -> str:
    return inner if weight == 1 else f"({inner}:{_number(weight)})"


def _piece(piece: Text | Word) -> str:
    if isinstance(piece, Text):
        return _SHOUTED.sub(lambda word: f"{word[0][0]}\\{word[0][1:]}", _SIGNS.sub(r"\\\g<0>", piece.text))
    equal = all(part.strength == 1 / len(piece.parts) for part in piece.parts)
    parts = [str(part.token)[1:-1] + ("" if equal else f":{_number(part.strength)}") for part in piece.parts]
    window = "" if (piece.start, piece.end) == (0, 1) else f"@{_number(piece.start)}-{_number(piece.end)}"
    return f"<{'+'.join(parts)}{window}>"


def _number(value: float) -> str:
    """All its digits, and no exponent."""
    return format(Decimal(repr(value)), "f").removesuffix(".0")
