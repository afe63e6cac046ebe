"""Work on the prompt: check it, set strengths and regions, fill presets, and offer concepts for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ....concepts.library import Library
from ....config import ConceptKind, GenerateRequest
from ....errors import UserError
from ....generation.request_checks import named, references_in
from ....playground.xyz_grid.prompt_edits import set_region, set_strength
from ....prompts import MAX_STRENGTH, Region, Token, Wildcards, count_prompts
from ....prompts.concept_options import REGIONS
from ....prompts.concept_syntax import BRACKETED
from ..error_text import labelled
from ..library.tiles import make_tiles, matches_search, newest_versions
from ..workspace import Workspace

MAX_STRENGTHS = 6  # concepts that get a slider
ANYWHERE, OWN_BOX = "auto", "box"
REGION_CHOICES = (ANYWHERE, *REGIONS, OWN_BOX)  # the last only shows that the prompt has a box of its own


@dataclass(frozen=True)
class PromptCheck:
    """Result of a check. note: what is wrong, or ""; strengths: (token as written, strength) in order."""

    note: str
    strengths: tuple[tuple[str, float], ...]


def check_prompt(prompt: Any, workspace: Workspace, kind: str) -> PromptCheck:
    """Check a prompt for a model of `kind`, including all its alternatives."""
    try:
        text = GenerateRequest(prompt=prompt).prompt
        count_prompts(text, Wildcards(workspace.wildcards))
        mentions = named(text)
        notes = [_concept_problem(mention.token, workspace.library, kind) for mention in mentions]
    except UserError as error:
        return PromptCheck(str(labelled(error)).replace("\n", " "), ())
    strengths = tuple((str(mention.token), mention.strength) for mention in mentions)[:MAX_STRENGTHS]
    return PromptCheck("  ".join(filter(None, notes)), strengths)


def change_strength(prompt: str, token: str, strength: Any) -> str:
    """Return the prompt with another strength of that concept, unchanged if token or strength is invalid."""
    try:
        return set_strength(prompt, Token.parse(token), _within(float(strength)))
    except (UserError, TypeError, ValueError):
        return prompt


def subject_regions(prompt: str, tokens: Iterable[str], library: Library) -> tuple[str | None, ...]:
    """Return where each concept of a valid prompt is to be: a name of `REGION_CHOICES`; None for a style.

    Of several mentions of a concept the last counts, as for its strength.
    """
    regions = {str(part.token): ref.region for ref in references_in(prompt) for part in ref.parts}
    return tuple(_region_name(regions.get(token)) if _is_subject(token, library) else None for token in tokens)


def _is_subject(token: str, library: Library) -> bool:
    try:
        card = library.find(Token.parse(token)).card
    except UserError:
        return False
    return card is not None and card.kind != "style"


def _region_name(region: Region | None) -> str:
    if region is None:
        return ANYWHERE
    return next((name for name, place in REGIONS.items() if place == region), OWN_BOX)


def change_region(prompt: str, token: str, name: Any) -> str:
    """Return the prompt with that concept in another region, unchanged if token or name is invalid."""
    if name not in REGIONS and name != ANYWHERE:
        return prompt
    try:
        return set_region(prompt, Token.parse(token), "" if name == ANYWHERE else name)
    except (UserError, TypeError):
        return prompt


def append_token(prompt: str, token: str) -> str:
    """Append the token to the prompt after one space."""
    return f"{prompt.rstrip()} {token}".lstrip()


def _within(strength: float) -> float:
    """Clamp to the strengths that a prompt can have, rounded to hundredths."""
    return round(max(-MAX_STRENGTH, min(MAX_STRENGTH, strength)), 2) + 0.0


def _concept_problem(token: Token, library: Library, kind: str) -> str:
    try:
        entry = library.find(token)
    except UserError as error:
        # A hint about the command line is of no use on a page.
        return error.message if "sdpersonal" in error.hint else str(error).replace("\n", " ")
    if entry.card is None:
        return f"{token} is damaged: {entry.damaged}"
    if entry.card.base != kind:
        return f"{token} was made for another kind of model ({entry.card.base}); the loaded one is {kind}."
    return ""


PROMPT_PRESETS: dict[ConceptKind, dict[str, str]] = {
    "person": {
        "Me as a samurai, a cowboy, a saint …": "a portrait of {} as a "
        "{samurai in armour|cowboy with a hat|saint with a halo|pirate|astronaut|king with a crown|chef|wizard}",
        "Me around the world": "a photo of {} "
        "{on a beach|in the snow|in a forest|in Venice|in the desert|in Tokyo at night}",
        "Me by the masters": "a portrait of {}, {oil painting by Rembrandt|charcoal drawing|stained glass|"
        "pop art|art nouveau poster|pencil sketch}",
    },
    "object": {
        "It in many places": "a photo of {} {on the beach|in the snow|in the forest|on a blue background|on grass}",
        "It at other times": "a photo of {} {at dawn|at night|in the rain|in autumn leaves}",
        "It in other materials": "{} made of {wood|glass|gold|wool|paper}",
    },
    "style": {
        "A world in this style": "a {cat|house|tree|car|boat} in the style of {}",
        "Portraits in this style": "a portrait of a {king|robot|fox|sailor} in the style of {}",
    },
}
PRESET_TITLES = [title for prompts in PROMPT_PRESETS.values() for title in prompts]


def fill_preset(title: str, prompt: str, library: Library, kind: str) -> str:
    """Fill a preset with a fitting concept: one named in the current prompt, else the library's newest.

    kind: of the loaded model. Raises UserError if there is no such preset or no fitting concept.
    """
    for subject, prompts in PROMPT_PRESETS.items():
        if title in prompts:
            token = _find_concept(subject, prompt, library, kind)
            # Not str.format: other braces hold alternatives, only the concept's place is empty.
            return prompts[title].replace("{}", str(token))
    raise UserError("There is no such prompt preset.", "Choose one from the list.")


def _find_concept(subject: ConceptKind, prompt: str, library: Library, kind: str) -> Token:
    entries = [entry for entry in library.entries() if entry.card and entry.card.base == kind]
    entries.sort(key=lambda entry: entry.path.stat().st_mtime, reverse=True)
    named = [word for word in BRACKETED.findall(prompt if isinstance(prompt, str) else "")]
    entries.sort(key=lambda entry: not any(str(entry.token.unversioned())[1:-1] in word for word in named))
    for wanted in (subject, *(("person", "object") if subject != "style" else ())):
        if match := next((entry for entry in entries if entry.card and entry.card.kind == wanted), None):
            return match.token.unversioned()
    raise UserError(f"There is no {subject} among your concepts for this model yet.", "Train one, or import one.")


MAX_TILES = 96  # tiles at once


@dataclass(frozen=True)
class ConceptChoices:
    """The concepts on offer. tiles: (image path, token), in the library's order; tokens: all that fit the model,
    whatever is searched for; note: one line about further or damaged concepts."""

    tiles: list[tuple[str, str]]
    tokens: tuple[str, ...]
    note: str


def concept_choices(workspace: Workspace, kind: str, search: object = "") -> ConceptChoices:
    """List the newest version of every concept made for models of `kind`, with tiles for those that match `search`."""
    try:
        newest = newest_versions(workspace.library.entries())
    except UserError as error:
        return ConceptChoices([], (), str(error))
    fitting = [entry for entry in newest if entry.card and entry.card.base == kind]
    matching = [entry for entry in fitting if matches_search(entry, search)]
    damaged = sum(bool(entry.damaged) for entry in newest)
    note = _choices_note(len(matching), len(newest) - len(fitting) - damaged, damaged)
    tokens = tuple(str(entry.token.unversioned()) for entry in fitting)
    return ConceptChoices(make_tiles(workspace, matching[:MAX_TILES], kind), tokens, note)


def _choices_note(match_count: int, others: int, damaged: int) -> str:
    parts = []
    if match_count > MAX_TILES:
        parts.append(f"Showing the first {MAX_TILES} of {match_count:,}; search for others, or type them.")
    if others:
        parts.append(f"{others:,} more {'is' if others == 1 else 'are'} for other models.")
    if damaged:
        parts.append(f"{damaged} damaged; see the Library tab.")
    return " ".join(parts)
