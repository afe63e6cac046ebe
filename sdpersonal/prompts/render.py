"""Format pieces as a prompt that parses to the same pieces."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import groupby, pairwise

from .ast import Break, ConceptRef, Prompt, Text

_BREAK = "BREAK"
_ESCAPED_SIGNS = re.compile(r"[()\[\]\\{}<]|(?<=_)_|_(?=_)")
# Only a whole word counts: a letter before or after would make it another word.
_KEYWORD = re.compile(r"(?<![^\W_])(BREAK|AND)(?![^\W_])")


def format_prompt(prompt: Prompt) -> str:
    """Format a prompt without alternatives: `parse(format_prompt(prompt)) == prompt`.

    The result may be longer than the typed text: each stretch of one weight gets its own brackets.
    """
    groups = groupby(prompt.pieces, key=lambda piece: None if isinstance(piece, Break) else piece.weight)
    stretches: list[str] = []
    for weight, pieces in groups:
        texts = [_format_piece(piece) for piece in pieces]
        stretches += texts if weight is None else [_format_weighted("".join(texts), weight)]
    text = "".join(stretches[:1])
    for before, after in pairwise(stretches):
        text += _separator(before, after) + after
    return text


def _separator(before: str, after: str) -> str:
    if _BREAK not in (before, after):
        return ""
    # BREAK absorbs the spaces beside it; a backslash keeps them.
    return "\\" if before[-1].isspace() or after[0].isspace() else " "


def _format_weighted(inner: str, weight: float) -> str:
    return inner if weight == 1 else f"({inner}:{_format_number(weight)})"


def _format_piece(piece: Text | ConceptRef | Break) -> str:
    if isinstance(piece, Break):
        return _BREAK
    if isinstance(piece, Text):
        return _KEYWORD.sub(lambda word: f"{word[0][0]}\\{word[0][1:]}", _ESCAPED_SIGNS.sub(r"\\\g<0>", piece.text))
    equal = all(part.strength == 1 / len(piece.parts) for part in piece.parts)
    parts = [str(part.token)[1:-1] + ("" if equal else f":{_format_number(part.strength)}") for part in piece.parts]
    window = "" if (piece.start, piece.end) == (0, 1) else f"@{_format_number(piece.start)}-{_format_number(piece.end)}"
    return f"<{'+'.join(parts)}{window}>"


def _format_number(value: float) -> str:
    """Format a number with all its digits and no exponent."""
    return format(Decimal(repr(value)), "f").removesuffix(".0")
