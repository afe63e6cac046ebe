"""The concepts that the Generate tab offers: a picture and a word for each that the loaded base can draw."""

from __future__ import annotations

from dataclasses import dataclass

from ....errors import PersonalError
from ..library.tiles import has, newest_of, pictured
from ..workspace import House

MOST = 96  # tiles at once


@dataclass(frozen=True)
class Shelf:
    """tiles: (path of a picture, token), in the library's order; words: all tokens that the base can draw, whatever is
    searched for; note: what else there is to say, one line."""

    tiles: list[tuple[str, str]]
    words: tuple[str, ...]
    note: str


def shelf(house: House, kind: str, search: object = "") -> Shelf:
    """The newest version of every concept made for bases of `kind`; tiles of those with the words of `search`."""
    try:
        newest = newest_of(house.library.list())
    except PersonalError as error:
        return Shelf([], (), str(error))
    fitting = [entry for entry in newest if entry.card and entry.card.base == kind]
    found = [entry for entry in fitting if has(entry, search)]
    damaged = sum(bool(entry.damaged) for entry in newest)
    note = _note(len(found), len(newest) - len(fitting) - damaged, damaged)
    words = tuple(str(entry.token.unversioned()) for entry in fitting)
    return Shelf(pictured(house, found[:MOST], kind), words, note)


def _note(found: int, others: int, damaged: int) -> str:
    parts = []
    if found > MOST:
        parts.append(f"The first {MOST} of {found:,}: search for others, or write them.")
    if others:
        parts.append(f"{others:,} more {'is' if others == 1 else 'are'} for another base.")
    if damaged:
        parts.append(f"{damaged} damaged: see the Library.")
    return " ".join(parts)
