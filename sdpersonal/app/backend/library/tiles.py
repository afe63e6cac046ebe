"""The concepts of a library as small pictures with captions, for pages: those asked for, as many as are looked at.

A tile is made once for as long as the app runs, into a folder that the page may serve. The library is everybody's who
uses the app, so the tiles are too.
"""

from __future__ import annotations

import colorsys
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .... import storage
from ....concepts.card import BASE_TITLES
from ....concepts.library import Entry
from ....concepts.thumbnail import make_thumbnail, reencode_thumbnail
from ....errors import UserError
from ..workspace import Workspace

PAGE_SIZE = 48  # tiles to begin with, and more at each asking
MAX_TILES = 3000  # on one page, which is slow by then: whoever has more searches

_SIDE = 160  # pixels: sharp on a screen with two to a point


@dataclass(frozen=True)
class ConceptTiles:
    """pictures: (path, caption), in the library's order; tokens: of the same concepts; found: how many there are of
    what was asked for; note: what else there is to say, one line."""

    pictures: list[tuple[str, str]]
    tokens: tuple[str, ...]
    found: int
    note: str


def concept_tiles(
    house: Workspace,
    base: str | None = None,
    search: str = "",
    kind: str | None = None,
    limit: int = PAGE_SIZE,
    loaded: str | None = None,
) -> ConceptTiles:
    """The newest version of every concept that is for bases of the kind `base`, is a `kind` ("object", ...), and has
    all words of `search` on its card. loaded: the kind of base whose concepts need no word of what they are for."""
    try:
        newest = newest_versions(house.library.list())
    except UserError as error:
        return ConceptTiles([], (), 0, str(error))
    found = [entry for entry in newest if _matches_filter(entry, base, kind) and matches_search(entry, search)]
    seen = found[: max(0, min(limit, MAX_TILES))]
    pictures = make_tiles(house, seen, loaded or base)
    note = _note(len(seen), len(found), newest)
    return ConceptTiles(pictures, tuple(str(entry.token.unversioned()) for entry in seen), len(found), note)


def newest_versions(entries: Iterable[Entry]) -> list[Entry]:
    """Of each concept the newest version, in the order of a library's listing."""
    return list({entry.token.unversioned(): entry for entry in entries}.values())


def matches_search(entry: Entry, search: object) -> bool:
    """Whether all words of a search are on its card."""
    return all(word in _search_text(entry) for word in str(search or "").casefold().split())


def make_tiles(house: Workspace, entries: Sequence[Entry], loaded: str | None) -> list[tuple[str, str]]:
    """(path of its tile, caption) of each."""
    folder = storage.make_folder(house.shown / "tiles")
    with ThreadPoolExecutor(4) as pool:  # Pillow computes without Python's lock
        places = list(pool.map(lambda entry: make_tile(entry, folder), entries))
    return [(str(place), _caption(entry, loaded)) for place, entry in zip(places, entries, strict=True)]


def make_tile(entry: Entry, folder: Path) -> Path:
    """The concept's tile in `folder`, made if it is not there (pages clear away what is an hour old)."""
    try:
        seen = entry.path.stat()
    except OSError:
        return _placeholder(entry, folder)  # removed just now
    name = hashlib.sha256(f"{entry.path}\n{seen.st_mtime_ns}\n{seen.st_size}".encode()).hexdigest()[:32]
    place = folder / f"{name}.webp"
    if not place.exists():
        try:
            thumbnail = None if entry.damaged else entry.thumbnail
            data = reencode_thumbnail(thumbnail, _SIDE) if thumbnail else None
        except UserError:
            data = None  # it is no picture after all; the word is still worth showing
        if data is None:
            return _placeholder(entry, folder)
        storage.write_bytes(place, data)
    return place


def _placeholder(entry: Entry, folder: Path) -> Path:
    """A plain tile with the name's first letter, in a colour of the name's own; grey where the file is damaged."""
    token = str(entry.token.unversioned())
    place = folder / f"plain-{'grey' if entry.damaged else entry.token.name[0]}-{zlib.crc32(token.encode()) % 24}.webp"
    if not place.exists():
        hue = zlib.crc32(token.encode()) % 24 / 24
        colour = (0.75, 0.75, 0.75) if entry.damaged else colorsys.hls_to_rgb(hue, 0.8, 0.45)
        picture = Image.new("RGB", (_SIDE, _SIDE), tuple(round(255 * c) for c in colour))
        letter, ink = "?" if entry.damaged else entry.token.name[0].upper(), tuple(round(140 * c) for c in colour)
        font = ImageFont.load_default(size=_SIDE // 2)
        ImageDraw.Draw(picture).text((_SIDE / 2, _SIDE / 2), letter, ink, font, anchor="mm")
        storage.write_bytes(place, make_thumbnail(picture, _SIDE))
    return place


def thumbnail_data_url(entry: Entry, side: int = 384) -> str:
    """The concept's picture, made anew from pixels, to stand in a page; "" without one."""
    import base64

    try:
        thumbnail = None if entry.damaged else entry.thumbnail
        made = reencode_thumbnail(thumbnail, side) if thumbnail else b""
    except UserError:
        return ""
    return f"data:image/webp;base64,{base64.b64encode(made).decode()}" if made else ""


def _matches_filter(entry: Entry, base: str | None, kind: str | None) -> bool:
    if entry.card is None:
        return not base and not kind
    return base in (None, "", entry.card.base) and kind in (None, "", entry.card.kind)


def _search_text(entry: Entry) -> str:
    if entry.card is None:
        return f"{entry.token} damaged".casefold()
    card = entry.card
    said = (card.title, card.description, card.class_noun, card.kind, card.base, BASE_TITLES[card.base], card.author)
    return " ".join((str(entry.token), *said)).casefold()


def _caption(entry: Entry, loaded: str | None) -> str:
    token = str(entry.token.unversioned())
    known = entry.card is None or loaded in (None, "", entry.card.base)
    return token if known else f"{token} {entry.card.base}"


def _note(seen: int, found: int, newest: Sequence[Entry]) -> str:
    count, damaged = len(newest), sum(bool(each.damaged) for each in newest)
    if not count:
        return ""
    parts = [f"{found:,} of {count:,} concepts." if found < count else _count_text(count)]
    if seen < found:
        parts.append(f"The first {seen:,} are shown.")
    if damaged:
        parts.append(f"{damaged} damaged: choose one to see what is wrong.")
    return " ".join(parts)


def _count_text(count: int) -> str:
    return "1 concept." if count == 1 else f"{count:,} concepts."
