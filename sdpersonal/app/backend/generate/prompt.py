"""Work on the prompt: check it, set strengths, fill presets, and offer concepts for it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ....concepts.library import Library
from ....config import ConceptKind, GenerateRequest
from ....errors import FieldError, UserError
from ....generation.request_checks import named, references_in
from ....playground.xyz_grid.prompt_edits import set_strength
from ....prompts import MAX_PROMPT, MAX_STRENGTH, Mention, Region, Token, Wildcards, count_prompts
from ....prompts.concept_syntax import BRACKETED
from ..error_text import labelled
from ..library.thumbnails import thumb_url
from ..workspace import Workspace
from .places import ANYWHERE, PromptPlace, region_name, subject_places

MAX_CONCEPTS = 24  # of a prompt, that the page shows
OWN_BOX = "box"  # the region of a concept whose box has no name


@dataclass(frozen=True)
class PromptConcept:
    """A concept that a prompt names. token: without its options; written: its last mention as it stands in the prompt;
    kind: "object", "person", "style", "" for an unknown one; region: `ANYWHERE`, the name of a region, `OWN_BOX`, None
    for a style; thumb: address of its thumbnail, or ""."""

    token: str
    written: str
    kind: str
    strength: float
    region: str | None
    thumb: str


@dataclass(frozen=True)
class PromptCheck:
    """Result of a check. problem: what is wrong, or ""; concepts: those that are named, in order; places: of the
    subjects among them, one for each mention."""

    problem: str
    concepts: tuple[PromptConcept, ...] = ()
    places: tuple[PromptPlace, ...] = ()


def check_prompt(prompt: Any, workspace: Workspace, kind: str) -> PromptCheck:
    """Check a prompt for a model of `kind`, including all its alternatives."""
    try:
        text = GenerateRequest(prompt=prompt).prompt
        count_prompts(text, Wildcards(workspace.wildcards))
        mentions = named(text)
        problems = [_concept_problem(mention.token, workspace.library, kind) for mention in mentions]
    except UserError as error:
        return PromptCheck(str(labelled(error)).replace("\n", " "))
    regions = {str(part.token): ref.region for ref in references_in(text) for part in ref.parts}
    written = _written(text)
    concepts = tuple(
        _prompt_concept(mention, regions.get(str(mention.token)), written.get(str(mention.token), ""), workspace)
        for mention in mentions[:MAX_CONCEPTS]
    )
    places = subject_places(text, {concept.token: concept.kind for concept in concepts if concept.kind})
    return PromptCheck("  ".join(filter(None, problems)), concepts, places)


def check_concepts(prompt: object, library: Library) -> None:
    """Raise FieldError if a prompt names a concept that does not exist. Prompts that cannot be read are let through,
    for `GenerateRequest` to refuse."""
    mentions: list[Mention] = []
    with suppress(UserError):
        mentions = named(prompt) if isinstance(prompt, str) and len(prompt) <= MAX_PROMPT else []
    for mention in mentions:
        try:
            library.find(mention.token)
        except UserError as error:
            # A hint about the command line is of no use on a page.
            raise FieldError("prompt", error.message, "" if "sdpersonal" in error.hint else error.hint) from None


def _prompt_concept(mention: Mention, region: Region | None, written: str, workspace: Workspace) -> PromptConcept:
    token = str(mention.token)
    try:
        entry = workspace.library.find(mention.token)
    except UserError:
        return PromptConcept(token, written or token, "", mention.strength, None, "")
    kind = entry.card.kind if entry.card else ""
    name = None if kind in ("style", "") else _region_name(region)
    return PromptConcept(token, written or token, kind, mention.strength, name, thumb_url(entry))


def _written(text: str) -> dict[str, str]:
    """Return the bracketed text of each concept's last mention, by token."""
    return {
        str(part.token): match[0]
        for match in BRACKETED.finditer(text)
        for reference in references_in(match[0])
        for part in reference.parts
    }


def change_strength(prompt: str, token: str, strength: Any) -> str:
    """Return the prompt with another strength of that concept, unchanged if token or strength is invalid."""
    try:
        return set_strength(prompt, Token.parse(token), _within(float(strength)))
    except (UserError, TypeError, ValueError):
        return prompt


def _region_name(region: Region | None) -> str:
    return ANYWHERE if region is None else region_name(region) or OWN_BOX


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


def prompt_presets() -> list[dict[str, str]]:
    """Return the prompts on offer, {id, title, kind of the concept}."""
    return [
        {"id": f"{kind}-{number}", "title": title, "kind": kind}
        for kind, prompts in PROMPT_PRESETS.items()
        for number, title in enumerate(prompts)
    ]


def fill_preset(preset_id: str, prompt: str, library: Library, kind: str) -> str:
    """Fill a preset with a fitting concept: one named in the current prompt, else the library's newest.

    kind: of the loaded model. Raises UserError if there is no such preset or no fitting concept.
    """
    for subject, prompts in PROMPT_PRESETS.items():
        for number, template in enumerate(prompts.values()):
            if preset_id == f"{subject}-{number}":
                token = _find_concept(subject, prompt, library, kind)
                # Not str.format: other braces hold alternatives, only the concept's place is empty.
                return template.replace("{}", str(token))
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
