"""Make tiles (thumbnails with captions) of the library's concepts, filtered, searched and limited for a page.

A tile is made once per run of the app, in a folder that the page may serve. All users share the library, and so the
tiles.
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
from ....display.html import data_url
from ....errors import UserError
from ..workspace import TILES, Workspace

PAGE_SIZE = 48  # tiles shown first; "Show more" multiplies them
MAX_TILES = 3000  # on one page, which is slow by then: search instead

_SIDE = 160  # pixels: sharp on a screen with two pixels to a point


@dataclass(frozen=True)
class ConceptTiles:
    """Tiles for a page. thumbnails: (path, caption), in the library's order; tokens: of the same concepts; match_count:
    number of matching concepts; note: one line about counts and damaged concepts."""

    thumbnails: list[tuple[str, str]]
    tokens: tuple[str, ...]
    match_count: int
    note: str


def concept_tiles(
    workspace: Workspace,
    base: str | None = None,
    search: str = "",
    kind: str | None = None,
    limit: int = PAGE_SIZE,
    loaded: str | None = None,
) -> ConceptTiles:
    """Make tiles of the newest version of every concept for models of the kind `base`, of a `kind` ("object", ...) and
    with all words of `search` on its card. loaded: kind of the loaded model, which captions need not name."""
    try:
        newest = newest_versions(workspace.library.entries())
    except UserError as error:
        return ConceptTiles([], (), 0, str(error))
    matching = [entry for entry in newest if _matches_filter(entry, base, kind) and matches_search(entry, search)]
    visible = matching[: max(0, min(limit, MAX_TILES))]
    thumbnails = make_tiles(workspace, visible, loaded or base)
    note = _note(len(visible), len(matching), newest)
    return ConceptTiles(thumbnails, tuple(str(entry.token.unversioned()) for entry in visible), len(matching), note)


def newest_versions(entries: Iterable[Entry]) -> list[Entry]:
    """Keep the newest version of each concept, in the order of a library's listing."""
    return list({entry.token.unversioned(): entry for entry in entries}.values())


def matches_search(entry: Entry, search: object) -> bool:
    """Return whether all words of a search are on the concept's card."""
    return all(word in _search_text(entry) for word in str(search or "").casefold().split())


def make_tiles(workspace: Workspace, entries: Sequence[Entry], loaded: str | None) -> list[tuple[str, str]]:
    """Return (path of the tile, caption) for each entry."""
    folder = storage.make_folder(workspace.served_dir / TILES)
    with ThreadPoolExecutor(4) as pool:  # Pillow releases the GIL
        paths = list(pool.map(lambda entry: make_tile(entry, folder), entries))
    return [(str(path), _caption(entry, loaded)) for path, entry in zip(paths, entries, strict=True)]


def make_tile(entry: Entry, folder: Path) -> Path:
    """Return the concept's tile in `folder`, making it if it is missing (the page deletes files after an hour)."""
    try:
        status = entry.path.stat()
    except OSError:
        return _placeholder(entry, folder)  # removed just now
    name = hashlib.sha256(f"{entry.path}\n{status.st_mtime_ns}\n{status.st_size}".encode()).hexdigest()[:32]
    target = folder / f"{name}.webp"
    if not target.exists():
        try:
            thumbnail = None if entry.damaged else entry.thumbnail
            data = reencode_thumbnail(thumbnail, _SIDE) if thumbnail else None
        except UserError:
            data = None  # not an image after all: a placeholder still shows the token
        if data is None:
            return _placeholder(entry, folder)
        storage.write_bytes(target, data)
    return target


def _placeholder(entry: Entry, folder: Path) -> Path:
    """Make a plain tile with the name's first letter, in a colour derived from the token; grey for a damaged file."""
    token = str(entry.token.unversioned())
    target = folder / f"plain-{'grey' if entry.damaged else entry.token.name[0]}-{zlib.crc32(token.encode()) % 24}.webp"
    if not target.exists():
        hue = zlib.crc32(token.encode()) % 24 / 24
        colour = (0.75, 0.75, 0.75) if entry.damaged else colorsys.hls_to_rgb(hue, 0.8, 0.45)
        image = Image.new("RGB", (_SIDE, _SIDE), tuple(round(255 * c) for c in colour))
        letter, ink = "?" if entry.damaged else entry.token.name[0].upper(), tuple(round(140 * c) for c in colour)
        font = ImageFont.load_default(size=_SIDE // 2)
        ImageDraw.Draw(image).text((_SIDE / 2, _SIDE / 2), letter, ink, font, anchor="mm")
        storage.write_bytes(target, make_thumbnail(image, _SIDE))
    return target


def thumbnail_data_url(entry: Entry, side: int = 384) -> str:
    """Return the concept's thumbnail, re-encoded from pixels, as a data URL; "" without one."""
    try:
        thumbnail = None if entry.damaged else entry.thumbnail
        data = reencode_thumbnail(thumbnail, side) if thumbnail else b""
    except UserError:
        return ""
    return data_url(data, "image/webp") if data else ""


def _matches_filter(entry: Entry, base: str | None, kind: str | None) -> bool:
    if entry.card is None:
        return not base and not kind
    return base in (None, "", entry.card.base) and kind in (None, "", entry.card.kind)


def _search_text(entry: Entry) -> str:
    if entry.card is None:
        return f"{entry.token} damaged".casefold()
    card = entry.card
    card_texts = (
        card.title,
        card.description,
        card.class_noun,
        card.kind,
        card.base,
        BASE_TITLES[card.base],
        card.author,
    )
    return " ".join((str(entry.token), *card_texts)).casefold()


def _caption(entry: Entry, loaded: str | None) -> str:
    token = str(entry.token.unversioned())
    if entry.card is None or loaded in (None, "", entry.card.base):
        return token
    return f"{token} {entry.card.base}"


def _note(seen: int, match_count: int, newest: Sequence[Entry]) -> str:
    count, damaged = len(newest), sum(bool(entry.damaged) for entry in newest)
    if not count:
        return ""
    parts = [f"{match_count:,} of {count:,} concepts." if match_count < count else _count_text(count)]
    if seen < match_count:
        parts.append(f"The first {seen:,} are shown.")
    if damaged:
        parts.append(f"{damaged} damaged; click one to see why.")
    return " ".join(parts)


def _count_text(count: int) -> str:
    return "1 concept." if count == 1 else f"{count:,} concepts."
