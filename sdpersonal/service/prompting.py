"""What a page says of a prompt before anything is drawn: which concepts are in it, how strong, and what is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..config import Request
from ..errors import PersonalError
from ..grids.wording import with_strength
from ..library import Library
from ..prompts import MAX_STRENGTH, Token, Wildcards, count
from ..prompts.words import read_word
from .house import House

MOST = 6  # concepts that get a slider
_BRACKET = re.compile(r"(?<!\\)<(?=\S)([^<>]*)>")


@dataclass(frozen=True)
class Asked:
    """note: what is wrong, or ""; strengths: of each concept by its token as written, in order."""

    note: str
    strengths: tuple[tuple[str, float], ...]


def asked(prompt: object, house: House, kind: str) -> Asked:
    """kind: of the base that would draw. Alternatives are looked into, and need not be chosen for that."""
    try:
        count(Request(prompt=prompt).prompt, Wildcards(house.wildcards))
        found = {str(part.token): part for word in _BRACKET.findall(prompt) for part in read_word(word).parts}
        notes = [_trouble(part.token, house.library, kind) for part in found.values()]
    except PersonalError as error:
        return Asked(str(error).replace("\n", " "), ())
    strengths = tuple((token, part.strength) for token, part in found.items())[:MOST]
    return Asked("  ".join(filter(None, notes)), strengths)


def stronger(prompt: str, token: str, strength: object) -> str:
    """The prompt with another strength of that concept; as it was where either is nothing of the kind."""
    try:
        return with_strength(prompt, Token.parse(token), _within(float(strength)))
    except (PersonalError, TypeError, ValueError):
        return prompt


def _within(strength: float) -> float:
    """The nearest strength that a prompt can have, to the hundredth. Raises ValueError for what is no number."""
    return round(max(-MAX_STRENGTH, min(MAX_STRENGTH, strength)), 2) + 0.0


def _trouble(token: Token, library: Library, kind: str) -> str:
    try:
        entry = library.find(token)
    except PersonalError as error:
        # What to type in a terminal helps nobody on a page.
        return error.problem if "sdpersonal" in error.fix else str(error).replace("\n", " ")
    if entry.damaged:
        return f"{token} is damaged: {entry.damaged}"
    if entry.card.base != kind:
        return f"{token} was made for another kind of base ({entry.card.base}); this one is {kind}."
    return ""
