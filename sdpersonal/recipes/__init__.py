"""What a picture was drawn from: kept inside it, read back from it, and from other programs' pictures."""

from .recipe import Drawn, Ingredient, Recipe, pixels_sum

__all__ = ["Drawn", "Ingredient", "Recipe", "pixels_sum"]
