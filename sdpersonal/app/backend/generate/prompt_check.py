"""What a page says of a prompt before anything is drawn: which concepts are in it, how strong, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from ....concepts.library import Library
from ....config import Request
from ....errors import PersonalError
from ....generation.request_checks import named
from ....playground.xyz_grid.wording import with_strength
from ....prompts import MAX_STRENGTH, Token, Wildcards, count
from ..error_text import labelled
from ..workspace import House

MOST = 6  # concepts that get a slider


@dataclass(frozen=True)
class Asked:
    """note: what is wrong, or ""; strengths: of each concept by its token as written, in order."""

    note: str
    strengths: tuple[tuple[str, float], ...]


def asked(prompt: object, house: House, kind: str) -> Asked:
    """kind: of the base that would draw. Alternatives are looked into, and need not be chosen for that."""
    try:
        count(Request(prompt=prompt).prompt, Wildcards(house.wildcards))
        mentions = named(prompt)
        notes = [_trouble(mention.token, house.library, kind) for mention in mentions]
    except PersonalError as error:
        return Asked(str(labelled(error)).replace("\n", " "), ())
    strengths = tuple((str(mention.token), mention.strength) for mention in mentions)[:MOST]
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
