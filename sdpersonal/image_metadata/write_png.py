"""A picture as PNG, with its recipe in it or with nothing at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .recipe import Recipe
from .write_infotext import format_infotext

if TYPE_CHECKING:
    from PIL import Image

RECIPE_KEY = "sdpersonal"  # of our own text in a PNG
A1111_KEY = "parameters"  # of A1111's


def png_with_recipe(picture: Image.Image, recipe: Recipe | None) -> bytes:
    """The picture as PNG: with its recipe, ours and A1111's; or, for None, with its pixels alone."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from ..image_grid import encode_png as encoded

    text = PngInfo()
    if recipe is not None:
        text.add_text(A1111_KEY, format_infotext(recipe).encode("utf-8", "replace").decode())
        text.add_itxt(RECIPE_KEY, recipe.to_json())
    bare = Image.frombytes(picture.mode, picture.size, picture.tobytes())  # leaves profile, EXIF and texts behind
    return encoded(bare, text)
