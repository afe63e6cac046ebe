"""Read a text hidden in the lowest bits of an image's pixels by NovelAI or A1111's stealth extension.

The bits run column by column from the left, top to bottom: one of each pixel's alpha ("stealth_png...") or three of its
colours ("stealth_rgb..."). They hold 15 letters, the number of bits that follow (32 bits, big-endian), then UTF-8,
compressed with gzip for "...comp". Sources: `stealth_pnginfo.py` of the extension, NovelAI's `novelai-image-metadata`.
"""

from __future__ import annotations

import io
import warnings
import zlib
from typing import TYPE_CHECKING

from .image_text import MAX_TEXT_BYTES, TextTooLong

if TYPE_CHECKING:
    import numpy as np

MAX_PIXELS = 16_000_000  # NovelAI generates up to 3 million
_LENGTH = 32  # bits
_MAGIC = 15  # letters


def hidden_text(data: bytes) -> str | None:
    """Return the text, or None without one. Raises TextTooLong for more than `MAX_TEXT_BYTES` bytes."""
    pixels = _pixels(data)
    if pixels is None:
        return None
    if pixels.shape[2] == 4 and (text := _read(pixels[:, :, 3:], "png")) is not None:
        return text
    return _read(pixels[:, :, :3], "rgb")


def _pixels(data: bytes) -> np.ndarray | None:
    """Return pixels (height, width, 3 or 4); None for a lossy format, a too large or an unreadable image."""
    import numpy as np
    from PIL import Image

    kind = "PNG" if data.startswith(b"\x89PNG") else "WEBP" if data[:4] == b"RIFF" and b"VP8L" in data[12:4000] else ""
    if not kind:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                if image.mode not in ("RGB", "RGBA") or image.width * image.height > MAX_PIXELS:
                    return None
                return np.asarray(image)
    except Exception:  # Pillow raises many kinds for broken files
        return None


def _read(channels: np.ndarray, form: str) -> str | None:
    """Return the text in pixels (height, width, channels), or None."""
    import numpy as np

    height, _, depth = channels.shape

    def taken(begin: int, count: int) -> bytes:
        """Return `count` bytes from bit `begin` on, reading only the columns that hold them."""
        first, last = begin // (height * depth), -(-(begin + 8 * count) // (height * depth))
        bits = (channels[:, first:last] & 1).transpose(1, 0, 2).reshape(-1)
        skipped = begin - first * height * depth
        return np.packbits(bits[skipped : skipped + 8 * count]).tobytes()

    magic = taken(0, _MAGIC)
    packed = magic == f"stealth_{form}comp".encode()
    if not packed and magic != f"stealth_{form}info".encode():
        return None
    size = int.from_bytes(taken(8 * _MAGIC, _LENGTH // 8), "big") // 8
    if size > MAX_TEXT_BYTES:
        raise TextTooLong
    stored = taken(8 * _MAGIC + _LENGTH, size)
    text = _unpacked(stored) if packed else stored
    return text.decode("utf-8", "replace") if text else None


def _unpacked(raw: bytes) -> bytes | None:
    inflate = zlib.decompressobj(wbits=31)  # gzip
    try:
        text = inflate.decompress(raw, MAX_TEXT_BYTES)
    except zlib.error:
        return None
    if inflate.unconsumed_tail:
        raise TextTooLong
    return text if inflate.eof else None
