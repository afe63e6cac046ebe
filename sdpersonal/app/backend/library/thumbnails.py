"""Make the thumbnails of the library's concepts when the page asks for them.

All users share the library, and so the thumbnails. Their addresses change with the files, so that browsers can keep
them.
"""

from __future__ import annotations

import colorsys
import hashlib
import threading
import zlib
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .... import storage
from ....concepts.library import Entry, Library
from ....concepts.thumbnail import MAX_BYTES, MAX_SIDE, make_thumbnail, reencode_thumbnail
from ....errors import UserError
from ..workspace import TILES, Workspace

SIDES = {"small": 256, "large": MAX_SIDE}  # pixels; small ones are sharp on a screen with two pixels to a point

_MAX_DECODERS = 4  # images decoded at a time: each may take 64 MB while it is decoded
_HUES = 24  # of placeholders


def content_key(path: Path) -> str:
    """Return a name that changes when the file does; "" for a file that is gone."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return hashlib.sha256(f"{path}\n{status.st_mtime_ns}\n{status.st_size}".encode()).hexdigest()[:32]


def thumb_url(entry: Entry, size: str = "small") -> str:
    """Return the address of a concept's thumbnail; every concept has one. size: a key of `SIDES`."""
    key = content_key(entry.path)
    return f"/app/concept-thumbs/{key}.webp{'' if size == 'small' else f'?size={size}'}" if key else ""


class ThumbnailStore:
    """Makes thumbnails by their key, in a folder of the app that is deleted when it ends."""

    def __init__(self, workspace: Workspace):
        self._library: Library = workspace.library
        self._folder = workspace.served_dir / TILES
        self._entries: dict[str, Entry] = {}
        self._decoders = threading.BoundedSemaphore(_MAX_DECODERS)

    def remember(self, entries: list[Entry]) -> None:
        """Keep which entry each key means, of all concepts of the library."""
        self._entries = {content_key(entry.path): entry for entry in entries}

    def get(self, key: str, size: str = "small") -> bytes:
        """Return the thumbnail as WebP. Raises UserError for a key that no concept has, or has any more."""
        if key not in self._entries:
            self.remember(self._library.entries())
        entry = self._entries.get(key)
        if entry is None or size not in SIDES:
            raise UserError("There is no such thumbnail: the concept was changed or deleted.")
        path = self._folder / f"{key}-{size}.webp"
        if not path.exists():
            with self._decoders:
                data = make_tile(entry, SIDES[size])
            storage.make_folder(self._folder)
            storage.write_bytes(path, data)
            return data
        return storage.read_bytes(path, MAX_BYTES)


def make_tile(entry: Entry, side: int) -> bytes:
    """Return the concept's thumbnail re-encoded from its pixels, or a placeholder."""
    try:
        thumbnail = None if entry.damaged else entry.thumbnail
        if thumbnail:
            return reencode_thumbnail(thumbnail, side)
    except UserError:
        pass  # not an image after all: a placeholder still shows the name
    return _placeholder(entry, side)


def _placeholder(entry: Entry, side: int) -> bytes:
    """Make a plain tile with the name's first letter, in a colour derived from the token; grey for a damaged file."""
    token = str(entry.token.unversioned())
    hue = zlib.crc32(token.encode()) % _HUES / _HUES
    colour = (0.75, 0.75, 0.75) if entry.damaged else colorsys.hls_to_rgb(hue, 0.8, 0.45)
    image = Image.new("RGB", (side, side), tuple(round(255 * c) for c in colour))
    letter, ink = "?" if entry.damaged else entry.token.name[0].upper(), tuple(round(140 * c) for c in colour)
    font = ImageFont.load_default(size=side // 2)
    ImageDraw.Draw(image).text((side / 2, side / 2), letter, ink, font, anchor="mm")
    return make_thumbnail(image, side)
