"""The concepts that a page offers: a picture and a word for each that the loaded base can draw."""

from __future__ import annotations

import colorsys
import io
import zlib
from dataclasses import dataclass

from PIL import Image

from ..errors import PersonalError
from ..library import Entry, Library
from ..thumbnail import remade

MAX_TILES = 200  # a page with more is slow to open
_SIDE = 128  # pixels of a tile


@dataclass(frozen=True)
class Shelf:
    """tiles: (picture, token) in the library's order; note: what else there is to say, one line."""

    tiles: list[tuple[Image.Image, str]]
    note: str


def shelf(library: Library, kind: str) -> Shelf:
    """The newest version of every concept made for bases of `kind`."""
    try:
        entries = library.list()
    except PersonalError as error:
        return Shelf([], str(error))
    newest = {entry.token.unversioned(): entry for entry in entries if not entry.damaged}  # versions come in order
    fitting = [entry for entry in newest.values() if entry.card.base == kind]
    tiles = [(_picture(entry), str(entry.token.unversioned())) for entry in fitting[:MAX_TILES]]
    return Shelf(tiles, _note(len(fitting), len(newest) - len(fitting), sum(bool(e.damaged) for e in entries)))


def _note(fitting: int, others: int, damaged: int) -> str:
    parts = []
    if fitting > MAX_TILES:
        parts.append(f"The first {MAX_TILES} of {fitting:,}; any other can be written in the prompt.")
    if others:
        parts.append(f"{others} more {'is' if others == 1 else 'are'} for another base.")
    if damaged:
        parts.append(f"{damaged} damaged: see `sdpersonal concepts verify`.")
    return " ".join(parts)


def _picture(entry: Entry) -> Image.Image:
    try:
        if thumbnail := entry.thumbnail:
            picture = Image.open(io.BytesIO(remade(thumbnail))).convert("RGB")
            picture.thumbnail((2 * _SIDE, 2 * _SIDE))
            return picture
    except PersonalError:
        pass  # it is no picture after all; the word is still worth showing
    return _blank(str(entry.token.unversioned()))


def _blank(token: str) -> Image.Image:
    """A plain tile in a colour of the token's own."""
    hue = zlib.crc32(token.encode()) % 360 / 360
    return Image.new("RGB", (_SIDE, _SIDE), tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, 0.75, 0.5)))
