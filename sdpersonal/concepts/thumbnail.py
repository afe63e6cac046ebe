"""The small picture in a concept's file. It is made from pixels only, so it carries nothing of the picture it shows."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from ..errors import UserError
from ..storage.file_types import recognise

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 512  # pixels
MAX_BYTES = 250_000  # in base64, a third of the header's limit
_MAX_PIXELS = 16_000_000
_KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp"}


def make_thumbnail(picture: Image.Image, side: int = MAX_SIDE) -> bytes:
    """A WebP of at most `side` pixels a side, without metadata."""
    from PIL import Image

    rgb = picture.convert("RGB")
    rgb.thumbnail((side, side))
    bare = Image.frombytes("RGB", rgb.size, rgb.tobytes())  # leaves EXIF, profile and text behind
    for quality in (85, 60, 30):  # noise at 512 px can need more room than a header has
        out = io.BytesIO()
        bare.save(out, "WEBP", quality=quality, method=4)
        if out.tell() <= MAX_BYTES:
            break
    return out.getvalue()


def media_type(data: bytes) -> str | None:
    """`image/webp` and so on, from the first bytes; None for what is no PNG, JPEG or WebP of at most 250 kB."""
    return _KINDS.get(recognise(data).name) if len(data) <= MAX_BYTES else None


def reencode_thumbnail(data: bytes, side: int = MAX_SIDE) -> bytes:
    """A stranger's thumbnail, decoded under limits and made anew. Raises UserError where it is no picture."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise ValueError("too many pixels")
                picture.draft("RGB", (side, side))  # a large JPEG is decoded small
                return make_thumbnail(picture, side)
    except Exception as error:  # Pillow raises many kinds for broken files
        raise UserError("The thumbnail is not a PNG, JPEG or WebP picture that can be read.") from error
