"""Check a prompt before generation: its concepts, their strengths, and problems."""

from __future__ import annotations

from dataclasses import dataclass

from ....concepts.library import Library
from ....config import GenerateRequest
from ....errors import UserError
from ....generation.request_checks import named
from ....playground.xyz_grid.prompt_edits import set_strength
from ....prompts import MAX_STRENGTH, Token, Wildcards, count_prompts
from ..error_text import labelled
from ..workspace import Workspace

MAX_STRENGTHS = 6  # concepts that get a slider


@dataclass(frozen=True)
class PromptCheck:
    """Result of a check. note: what is wrong, or ""; strengths: (token as written, strength) in order."""

    note: str
    strengths: tuple[tuple[str, float], ...]


def check_prompt(prompt: object, workspace: Workspace, kind: str) -> PromptCheck:
    """Check a prompt for a model of `kind`, including all its alternatives."""
    try:
        count_prompts(GenerateRequest(prompt=prompt).prompt, Wildcards(workspace.wildcards))
        mentions = named(prompt)
        notes = [_concept_problem(mention.token, workspace.library, kind) for mention in mentions]
    except UserError as error:
        return PromptCheck(str(labelled(error)).replace("\n", " "), ())
    strengths = tuple((str(mention.token), mention.strength) for mention in mentions)[:MAX_STRENGTHS]
    return PromptCheck("  ".join(filter(None, notes)), strengths)


def change_strength(prompt: str, token: str, strength: object) -> str:
    """Return the prompt with another strength of that concept, unchanged if token or strength is invalid."""
    try:
        return set_strength(prompt, Token.parse(token), _within(float(strength)))
    except (UserError, TypeError, ValueError):
        return prompt


def _within(strength: float) -> float:
    """Clamp to the strengths that a prompt can have, rounded to hundredths."""
    return round(max(-MAX_STRENGTH, min(MAX_STRENGTH, strength)), 2) + 0.0


def _concept_problem(token: Token, library: Library, kind: str) -> str:
    try:
        entry = library.find(token)
    except UserError as error:
        # A hint about the command line is of no use on a page.
        return error.message if "sdpersonal" in error.hint else str(error).replace("\n", " ")
    if entry.damaged:
        return f"{token} is damaged: {entry.damaged}"
    if entry.card.base != kind:
        return f"{token} was made for another kind of base ({entry.card.base}); this one is {kind}."
    return ""
