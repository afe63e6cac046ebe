"""Write the recipe of an image: in a PNG, in ours and A1111's format, and in Exif as A1111 does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .recipe import Recipe
from .write_infotext import format_infotext

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

RECIPE_KEY = "sdpersonal"  # key of the PNG text with our own recipe
A1111_KEY = "parameters"  # key of the PNG text with A1111's infotext
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286  # tags of Exif 2.3


def png_with_recipe(image: Image.Image, recipe: Recipe | None) -> bytes:
    """Encode the image as PNG with its recipe in our format and A1111's, or for None with its pixels only."""
    from PIL import Image

    from ..display.image_grid import encode_png as encoded

    text = None if recipe is None else recipe_as_png_text(recipe)
    bare = Image.frombytes(image.mode, image.size, image.tobytes())  # drops profile, EXIF and texts
    return encoded(bare, text)


def recipe_as_png_text(recipe: Recipe) -> PngInfo:
    """Return the recipe as texts of a PNG, in our format and A1111's."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(A1111_KEY, _infotext(recipe))
    text.add_itxt(RECIPE_KEY, recipe.to_json())
    return text


def recipe_as_exif(recipe: Recipe) -> bytes:
    """Return Exif with A1111's infotext in its UserComment, where A1111 writes and reads it in JPEG and WebP."""
    from PIL import Image

    exif = Image.Exif()
    exif[_EXIF_IFD] = {_USER_COMMENT: b"UNICODE\0" + _infotext(recipe).encode("utf-16-be")}
    return exif.tobytes()


def _infotext(recipe: Recipe) -> str:
    return format_infotext(recipe).encode("utf-8", "replace").decode()
