"""Read the places of the subjects in a prompt, which the page shows as boxes, and write them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....errors import UserError
from ....generation.placement import place_subjects
from ....generation.request_checks import references_in
from ....playground.xyz_grid.prompt_edits import set_region
from ....prompts import ConceptRef, Prompt, Region, Text, Token
from ....prompts.concept_options import REGIONS, parse_region
from ....prompts.concept_syntax import BRACKETED

ANYWHERE = "auto"


@dataclass(frozen=True)
class PromptPlace:
    """Where a subject of a prompt stands.

    number: of its brackets in the prompt, from 0; token: its first concept; name: all of them, "me/duck+me/fox"; box:
    left, top, right, bottom as fractions of the image; is_given: the prompt says so, otherwise it is the default;
    has_window: it acts in a part of the sampling only, so that nothing is composed.
    """

    number: int
    token: str
    name: str
    box: tuple[float, float, float, float]
    is_given: bool
    has_window: bool


def subject_places(text: str, kinds: Mapping[str, str]) -> tuple[PromptPlace, ...]:
    """Return the places of the subjects in a prompt that can be read, in order.

    kinds: of the concepts that exist, by token. Of alternatives within brackets the first one counts.
    """
    pieces: list[Text | ConceptRef] = []
    subjects: list[tuple[int, ConceptRef]] = []
    end = 0
    for number, match in enumerate(BRACKETED.finditer(text)):
        pieces.append(Text(text[end : match.start()]))
        end = match.end()
        if (reference := _first_reference(match[0])) and _is_subject(reference, kinds):
            subjects.append((number, reference))
            pieces.append(reference)
    regions = place_subjects(Prompt(text, tuple(pieces)), [reference for _, reference in subjects])
    return tuple(
        _prompt_place(number, reference, region) for (number, reference), region in zip(subjects, regions, strict=True)
    )


def _first_reference(written: str) -> ConceptRef | None:
    return next(iter(references_in(written)), None)


def _is_subject(reference: ConceptRef, kinds: Mapping[str, str]) -> bool:
    return any(kinds.get(str(part.token), "style") != "style" for part in reference.parts)


def _prompt_place(number: int, reference: ConceptRef, region: Region) -> PromptPlace:
    tokens = [str(part.token) for part in reference.parts]
    box = (region.left, region.top, region.right, region.bottom)
    has_window = (reference.start, reference.end) != (0, 1)
    name = "+".join(token[1:-1] for token in tokens)
    return PromptPlace(number, tokens[0], name, box, reference.region is not None, has_window)


def change_region(prompt: str, token: str, region: object, number: int | None = None) -> str:
    """Return the prompt with that concept in another region, unchanged if a value is invalid.

    region: a name of `REGIONS`, `ANYWHERE`, or a box, "0.5,0.2,1,0.9". number: of the only brackets to change; None for
    every mention.
    """
    try:
        return set_region(prompt, Token.parse(token), _written_region(region), number)
    except (UserError, TypeError):
        return prompt


def _written_region(region: object) -> str:
    """Return a region as a prompt has it: by name if there is one for it, "" for anywhere. Raises UserError."""
    if region == ANYWHERE:
        return ""
    options = {"box" if "," in str(region) else "at": str(region)}
    place = parse_region("", options)
    name = region_name(place)
    return name or (f"{place.left:g},{place.top:g},{place.right:g},{place.bottom:g}" if place else "")


def region_name(region: Region | None) -> str:
    """Return the name of a region, "" if it has none."""
    return next((name for name, place in REGIONS.items() if place == region), "")
