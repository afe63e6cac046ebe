"""Encode an image as PNG, with its recipe or without any metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .recipe import Recipe
from .write_infotext import format_infotext

if TYPE_CHECKING:
    from PIL import Image

RECIPE_KEY = "sdpersonal"  # key of the PNG text with our own recipe
A1111_KEY = "parameters"  # key of the PNG text with A1111's infotext


def png_with_recipe(image: Image.Image, recipe: Recipe | None) -> bytes:
    """Encode the image as PNG with its recipe in our format and A1111's, or for None with its pixels only."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from ..image_grid import encode_png as encoded

    text = PngInfo()
    if recipe is not None:
        text.add_text(A1111_KEY, format_infotext(recipe).encode("utf-8", "replace").decode())
        text.add_itxt(RECIPE_KEY, recipe.to_json())
    bare = Image.frombytes(image.mode, image.size, image.tobytes())  # drops profile, EXIF and texts
    return encoded(bare, text)
