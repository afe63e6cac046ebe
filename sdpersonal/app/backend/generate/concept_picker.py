"""Offer concepts on the Generate tab: a tile and a token for each that fits the loaded model."""

from __future__ import annotations

from dataclasses import dataclass

from ....errors import UserError
from ..library.tiles import make_tiles, matches_search, newest_versions
from ..workspace import Workspace

MAX_TILES = 96  # tiles at once


@dataclass(frozen=True)
class ConceptChoices:
    """The concepts on offer. tiles: (image path, token), in the library's order; words: all tokens that fit the model,
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
    note = _note(len(matching), len(newest) - len(fitting) - damaged, damaged)
    tokens = tuple(str(entry.token.unversioned()) for entry in fitting)
    return ConceptChoices(make_tiles(workspace, matching[:MAX_TILES], kind), tokens, note)


def _note(match_count: int, others: int, damaged: int) -> str:
    parts = []
    if match_count > MAX_TILES:
        parts.append(f"The first {MAX_TILES} of {match_count:,}: search for others, or write them.")
    if others:
        parts.append(f"{others:,} more {'is' if others == 1 else 'are'} for another base.")
    if damaged:
        parts.append(f"{damaged} damaged: see the Library.")
    return " ".join(parts)
