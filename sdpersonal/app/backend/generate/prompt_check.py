"""What a page says of a prompt before anything is drawn: which concepts are in it, how strong, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from ....concepts.library import Library
from ....config import GenerateRequest
from ....errors import UserError
from ....generation.request_checks import named
from ....playground.xyz_grid.wording import set_strength
from ....prompts import MAX_STRENGTH, Token, Wildcards, count_prompts
from ..error_text import labelled
from ..workspace import Workspace

MAX_STRENGTHS = 6  # concepts that get a slider


@dataclass(frozen=True)
class PromptCheck:
    """note: what is wrong, or ""; strengths: of each concept by its token as written, in order."""

    note: str
    strengths: tuple[tuple[str, float], ...]


def check_prompt(prompt: object, house: Workspace, kind: str) -> PromptCheck:
    """kind: of the base that would draw. Alternatives are looked into, and need not be chosen for that."""
    try:
        count_prompts(GenerateRequest(prompt=prompt).prompt, Wildcards(house.wildcards))
        mentions = named(prompt)
        notes = [_concept_problem(mention.token, house.library, kind) for mention in mentions]
    except UserError as error:
        return PromptCheck(str(labelled(error)).replace("\n", " "), ())
    strengths = tuple((str(mention.token), mention.strength) for mention in mentions)[:MAX_STRENGTHS]
    return PromptCheck("  ".join(filter(None, notes)), strengths)


def change_strength(prompt: str, token: str, strength: object) -> str:
    """The prompt with another strength of that concept; as it was where either is nothing of the kind."""
    try:
        return set_strength(prompt, Token.parse(token), _within(float(strength)))
    except (UserError, TypeError, ValueError):
        return prompt


def _within(strength: float) -> float:
    """The nearest strength that a prompt can have, to the hundredth. Raises ValueError for what is no number."""
    return round(max(-MAX_STRENGTH, min(MAX_STRENGTH, strength)), 2) + 0.0


def _concept_problem(token: Token, library: Library, kind: str) -> str:
    try:
        entry = library.find(token)
    except UserError as error:
        # What to type in a terminal helps nobody on a page.
        return error.message if "sdpersonal" in error.hint else str(error).replace("\n", " ")
    if entry.damaged:
        return f"{token} is damaged: {entry.damaged}"
    if entry.card.base != kind:
        return f"{token} was made for another kind of base ({entry.card.base}); this one is {kind}."
    return ""
