"""Make and decode the thumbnail in a concept's file, of pixels only: it carries no metadata of the original image."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from ..errors import UserError
from ..storage.file_types import recognise

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 512  # pixels
MAX_BYTES = 250_000  # in base64 a third of the header's limit
_MAX_PIXELS = 16_000_000
_KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp"}


def make_thumbnail(image: Image.Image, side: int = MAX_SIDE) -> bytes:
    """Encode an image as a WebP of at most `side` pixels per side, without metadata."""
    from PIL import Image

    rgb = image.convert("RGB")
    rgb.thumbnail((side, side))
    bare = Image.frombytes("RGB", rgb.size, rgb.tobytes())  # leaves EXIF, profile and text behind
    for quality in (85, 60, 30):  # noise at 512 px can exceed the header's limit
        out = io.BytesIO()
        bare.save(out, "WEBP", quality=quality, method=4)
        if out.tell() <= MAX_BYTES:
            break
    return out.getvalue()


def media_type(data: bytes) -> str | None:
    """Return `image/webp` and so on from the first bytes; None for anything but a PNG, JPEG or WebP up to 250 kB."""
    return _KINDS.get(recognise(data).name) if len(data) <= MAX_BYTES else None


def decode_thumbnail(data: bytes) -> Image.Image:
    """Decode an untrusted thumbnail under limits. Raises UserError if it is no image."""
    from PIL import Image

    with Image.open(io.BytesIO(reencode_thumbnail(data)), formats=("WEBP",)) as image:
        return image.convert("RGB")


def reencode_thumbnail(data: bytes, side: int = MAX_SIDE) -> bytes:
    """Decode an untrusted thumbnail under limits and re-encode it. Raises UserError if it is no image."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise ValueError("too many pixels")
                image.draft("RGB", (side, side))  # a large JPEG is decoded at reduced size
                return make_thumbnail(image, side)
    except Exception as error:  # Pillow raises many kinds for broken files
        raise UserError("The thumbnail is not a PNG, JPEG or WebP image that can be read.") from error
