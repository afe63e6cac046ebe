"""Read embeddings inside images, as A1111 saves them to be shared.

They are stored twice: in a PNG text chunk `sd-ti-embedding`, base64 of the `.pt` as JSON; and, to survive a host that
drops chunks, in the pixels left and right of the image: the low four bits of each colour there, XORed with a known
random sequence, are halves of the bytes of the same JSON, zlib-compressed. A black column separates each side from the
image. Source: A1111 `modules/textual_inversion/image_embedding.py`.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ...errors import UserError, printable
from ...storage.file_types import PNG_SIGNATURE, recognise
from ...storage.reading import parse_strict_json
from ..strict_safetensors import damaged_file_error
from .contents import FileContents, from_tree
from .embeddings import is_a1111

_READ = ("PNG", "WebP")  # other images hold none: they have no such chunk, and their pixels are only approximate
_KEYWORD = b"sd-ti-embedding\0"
_TENSOR = "TORCHTENSOR"
_MAX_PIXELS = 16_000_000
_MAX_JSON = 6_000_000  # bytes: 64 vectors of 1280 numbers are 2 MB
_MAX_CHUNKS = 10_000


def holds_embedding(data: bytes) -> bool:
    """Return whether a PNG has the text chunk, without a look at its pixels."""
    return data.startswith(PNG_SIGNATURE) and next(_text_chunks(data), None) is not None


def read_image_contents(data: bytes, name: str) -> FileContents:
    """Read the contents of A1111's embedding in this image. Raises UserError."""
    if (kind := recognise(data)).name not in _READ:
        raise UserError(f"{printable(name)} is {kind.what} without an embedding in it.", kind.hint)
    try:
        text = next(_text_chunks(data), None) if data.startswith(PNG_SIGNATURE) else None
        raw = base64.b64decode(text, validate=True) if text is not None else _json_in_pixels(data)
        raw = b"null" if raw is None else raw
        tree = parse_strict_json(raw.decode("utf-8"))
        content = from_tree(_decode_tensors(tree), name, len(raw)) if isinstance(tree, dict) else None
    except (ValueError, TypeError, binascii.Error, zlib.error, OverflowError, RecursionError) as error:
        raise damaged_file_error(name, "the embedding in this image is damaged") from error
    if content is None or not is_a1111(content):
        raise UserError(
            f"{printable(name)} is an image without an embedding in it.", "Photos to train on go into a folder."
        )
    return replace(content, name_in_file=content.fact("name"))  # the image may have been renamed


def _text_chunks(data: bytes) -> Iterator[bytes]:
    """Yield what follows the keyword in a PNG's text chunks; the file may end anywhere."""
    offset = len(PNG_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        head = data[offset : offset + 8]
        length = int.from_bytes(head[:4], "big")
        if len(head) < 8 or offset + 8 + length > len(data):
            return
        if head[4:] == b"tEXt" and data.startswith(_KEYWORD, offset + 8) and length <= 4 * _MAX_JSON // 3:
            yield data[offset + 8 + len(_KEYWORD) : offset + 8 + length]
        offset += 12 + length


def _decode_tensors(tree: object, depth: int = 0) -> object:
    """Convert the JSON's tensors to arrays. Raises ValueError where one is not made of numbers."""
    if not isinstance(tree, dict) or depth > 3:
        return tree
    if _TENSOR in tree:
        with np.errstate(over="ignore"):  # it becomes infinite, which is refused later
            numbers = np.asarray(tree[_TENSOR], np.float64)  # ragged lists raise ValueError, objects TypeError
            return numbers.astype(np.float32)
    return {key: _decode_tensors(value, depth + 1) for key, value in tree.items()}


def _json_in_pixels(data: bytes) -> bytes | None:
    """Return the JSON in the pixels; None where there is none. Raises ValueError where it is damaged."""
    pixels = _crop_black_edges(_pixels(data)) & 0x0F
    dark = np.flatnonzero(pixels.sum(axis=(0, 2)) == 0)
    if len(dark) < 2:
        return None
    low, high = pixels[:, : dark.min()], pixels[:, dark.max() + 1 :]
    if low.shape != high.shape or not low.size:
        return None
    mask = _lcg_bytes(low.size).reshape(low.shape) & 0x0F
    packed = ((high ^ mask) << 4 | (low ^ mask)).tobytes()
    if not re.match(rb"x[\x01\x5e\x9c\xda]", packed):  # zlib's first bytes: else two dark columns by chance
        return None
    inflate = zlib.decompressobj()
    raw = inflate.decompress(packed, _MAX_JSON)
    if not inflate.eof:
        raise ValueError("too long, or cut")
    return raw


def _pixels(data: bytes) -> np.ndarray:
    """Decode to uint8 (H, W, 3). Raises ValueError where the image cannot be read."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise ValueError("too many pixels")
                return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for broken files
        raise ValueError("no readable image") from error


def _crop_black_edges(pixels: np.ndarray) -> np.ndarray:
    """Crop the black edges that some screenshots have."""
    bright = pixels.min(axis=2) > 0
    columns, rows = np.flatnonzero(bright.any(axis=0)), np.flatnonzero(bright.any(axis=1))
    if not len(rows):
        raise ValueError("all is black")
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _lcg_bytes(count: int) -> np.ndarray:
    """Return uint8 (count,): the linear congruential generator of Numerical Recipes from seed 0, modulo 255.

    The sequence is doubled rather than stepped: k steps at once are again x -> a x + c (mod 2^32).
    """
    states = np.empty(count, np.uint64)
    a, c = 1664525, 1013904223
    states[:1] = c
    done = 1
    while done < count:
        take = min(done, count - done)
        states[done : done + take] = (states[:take] * np.uint64(a) + np.uint64(c)) % np.uint64(2**32)
        a, c, done = a * a % 2**32, (a * c + c) % 2**32, done + take
    return (states % 255).astype(np.uint8)
