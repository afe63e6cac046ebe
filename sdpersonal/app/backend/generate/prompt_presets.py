"""Offer prompt presets for each kind of concept. Braces hold alternatives: each image gets another."""

from __future__ import annotations

from ....concepts.library import Library
from ....config import ConceptKind
from ....errors import UserError
from ....prompts import Token
from ....prompts.concept_syntax import BRACKETED

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
    raise UserError("There is no such ready prompt.", "Choose one of the list.")


def _find_concept(subject: ConceptKind, prompt: str, library: Library, kind: str) -> Token:
    entries = [entry for entry in library.entries() if not entry.damaged and entry.card.base == kind]
    entries.sort(key=lambda each: each.path.stat().st_mtime, reverse=True)
    named = [word for word in BRACKETED.findall(prompt if isinstance(prompt, str) else "")]
    entries.sort(key=lambda each: not any(str(each.token.unversioned())[1:-1] in word for word in named))
    for wanted in (subject, *(("person", "object") if subject != "style" else ())):
        if match := next((entry for entry in entries if entry.card.kind == wanted), None):
            return match.token.unversioned()
    raise UserError(f"There is no {subject} among your concepts for this base yet.", "Make one, or import one.")
