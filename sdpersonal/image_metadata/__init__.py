"""What a picture was drawn from: kept inside it, read back from it, and from other programs' pictures."""

from .parameters import Foreign
from .read_recipe import MAX_PICTURE, read_recipe
from .recipe import Drawn, Ingredient, Recipe, hidden_note, pixels_sum
from .write_png import png

__all__ = ["MAX_PICTURE", "Drawn", "Foreign", "Ingredient", "Recipe", "hidden_note", "pixels_sum", "png", "read_recipe"]
