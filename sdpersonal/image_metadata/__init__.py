"""Read and write the metadata of generated images: our recipes, and other programs' metadata."""

from .parameters import Foreign
from .read_recipe import MAX_IMAGE_BYTES, read_recipe
from .recipe import Presence, Recipe, RecipeBase, RecipeConcept, describe_hidden, describe_presence, pixels_sha256
from .write_png import png_with_recipe, recipe_as_exif, recipe_as_png_text

__all__ = [
    "MAX_IMAGE_BYTES",
    "Foreign",
    "Presence",
    "Recipe",
    "RecipeBase",
    "RecipeConcept",
    "describe_hidden",
    "describe_presence",
    "pixels_sha256",
    "png_with_recipe",
    "read_recipe",
    "recipe_as_exif",
    "recipe_as_png_text",
]
