"""Read and write crops made by hand: `01.crop.json` beside `01.jpg` says which square of it is trained on.

The file holds `{"crop": [left, top, side]}`: left as a share of the upright photo's width, top as a share of its
height, side as a share of its shorter side, so that 1 is the largest square. The photo is then used as if it had been
cut to that square before.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import UserError, printable
from ..storage.reading import parse_strict_json
from .captions import Refused, by_key, text_of
from .decode import decode, largest_decoded_side, shorter_side

SUFFIX = ".crop.json"
MIN_CROP = 64  # pixels of the photo: the side of the smallest square
_MAX_BYTES = 1000
_SLACK = 1.0  # pixels by which the square may leave the photo, whose sides and shares were rounded


class OwnCrop(NamedTuple):
    """A square of a photo: left in shares of its width, top of its height, side of its shorter side."""

    left: float
    top: float
    side: float

    def box(self, width: int, height: int) -> tuple[int, int, int]:
        """Return (left, top, side) in pixels of a photo of this size; the square is always inside."""
        side = max(1, min(round(self.side * min(width, height)), width, height))
        left, top = (
            min(round(a), b) for a, b in ((self.left * width, width - side), (self.top * height, height - side))
        )
        return left, top, side

    def check(self, width: int, height: int, scale: float = 1.0) -> None:
        """Raise Refused if the square is not inside a photo of this size, or too small. scale: of this size
        to the photo's own."""
        side = self.side * min(width, height)
        if self.left * width + side > width + _SLACK or self.top * height + side > height + _SLACK:
            raise Refused("has a square that is not inside the photo")
        if round(side * scale) < MIN_CROP:
            raise Refused(f"has a square of {side * scale:.0f} pixels; at least {MIN_CROP} are needed")


class OwnCrops:
    """The crops by hand in a folder, by the names of its photos.

    names: of all files of the folder; read_file: returns a file's bytes by its name, raises Refused. used: the files
    that crops came from.
    """

    def __init__(self, names: Sequence[str], read_file: Callable[[str], bytes]):
        self._files = by_key([name for name in sorted(names) if name.lower().endswith(SUFFIX)])
        self._read_file = read_file
        self.used: set[str] = set()

    def of(self, photo: str) -> tuple[OwnCrop | None, tuple[str, ...]]:
        """Return the crop of the photo with this file name, if it has one, and remarks for the user."""
        names = by_key([f"{photo}{SUFFIX}", f"{os.path.splitext(photo)[0]}{SUFFIX}"])
        file = next((self._files[key] for key in names if key in self._files), None)
        if file is None:
            return None, ()
        self.used.add(file)
        try:
            return parse_crop(self._read_file(file)), ()
        except Refused as reason:
            return None, (f"its crop is not used: {printable(file)} {reason}",)


def parse_crop(data: bytes) -> OwnCrop:
    """Read the file of a crop. Raises Refused."""
    try:
        content = parse_strict_json(text_of(data, _MAX_BYTES))
    except (ValueError, RecursionError, UserError):
        raise Refused("is not JSON") from None
    return to_crop(content.get("crop") if isinstance(content, dict) else None)


def to_crop(values: object) -> OwnCrop:
    """Return the crop of [left, top, side]. Raises Refused if these are no three numbers from 0 to 1."""
    numbers = values if isinstance(values, list | tuple) else []
    if len(numbers) != 3 or not all(type(n) in (int, float) and math.isfinite(n) and 0 <= n <= 1 for n in numbers):
        raise Refused("has no crop of three numbers from 0 to 1: left, top and side")
    return OwnCrop(*map(float, numbers))


def crop_json(crop: OwnCrop) -> str:
    """Return the text of a crop's file."""
    return json.dumps({"crop": list(crop)}) + "\n"


def decode_square(data: bytes, crop: OwnCrop, size: int) -> tuple[np.ndarray, tuple[str, ...], int]:
    """Decode a square of a photo; return it with notes for the user and its side before scaling.

    Returns uint8 (size, size, 3). The photo is scaled so that the square has the size, but never enlarged as a whole.
    Raises UnusablePhoto as `decode` does, Refused if the crop does not fit.
    """
    short = shorter_side(data)
    pixels, notes = decode(data, max(1, min(largest_decoded_side(data), round(size / max(crop.side, 1e-9)))))
    height, width = pixels.shape[:2]
    crop.check(width, height, short / min(height, width))
    left, top, side = crop.box(width, height)
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    original = round(crop.side * short)
    if side != size:
        square = np.array(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))
    if original < size:
        notes = (*notes, f"enlarged from its crop of {original}x{original}")
    return square, notes, original
