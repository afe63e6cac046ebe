"""Format pieces as a prompt that parses to the same pieces."""

from __future__ import annotations

import re
from itertools import groupby, pairwise

from .ast import Break, ConceptRef, Mention, Prompt, Region, Text
from .block_weights import BlockWeights, format_blocks, format_number
from .concept_options import REGIONS

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
    return inner if weight == 1 else f"({inner}:{format_number(weight)})"


def _format_piece(piece: Text | ConceptRef | Break) -> str:
    if isinstance(piece, Break):
        return _BREAK
    if isinstance(piece, Text):
        return _KEYWORD.sub(lambda word: f"{word[0][0]}\\{word[0][1:]}", _ESCAPED_SIGNS.sub(r"\\\g<0>", piece.text))
    return _format_reference(piece)


def _format_reference(reference: ConceptRef) -> str:
    equal = all(part.strength == 1 / len(reference.parts) for part in reference.parts)
    parts = "+".join(_format_mention(part, with_strength=not equal) for part in reference.parts)
    guidance = "" if reference.guidance is None else f":guidance={format_number(reference.guidance)}"
    region = "" if reference.region is None else f":{_format_region(reference.region)}"
    has_window = (reference.start, reference.end) != (0, 1)
    window = f"@{format_number(reference.start)}-{format_number(reference.end)}" if has_window else ""
    return f"<{parts}{guidance}{region}{window}>"


def _format_mention(mention: Mention, with_strength: bool) -> str:
    items = [str(mention.token)[1:-1]]
    if with_strength:
        items.append(format_number(mention.strength))
    if mention.blocks not in (None, BlockWeights()):
        items.append(format_blocks(mention.blocks))
    if mention.ramp != (1, 1):
        items.append(f"ramp={'-'.join(map(format_number, mention.ramp))}")
    return ":".join(items)


def _format_region(region: Region) -> str:
    name = next((name for name, place in REGIONS.items() if place == region), "")
    sides = region.left, region.top, region.right, region.bottom
    return f"at={name}" if name else f"box={','.join(map(format_number, sides))}"
