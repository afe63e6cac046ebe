"""A generated image with its recipe."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ..image_metadata import Recipe, png_with_recipe


@dataclass(frozen=True)
class GeneratedImage:
    """A generated RGB image and all that is needed to generate it again."""

    image: Image.Image
    recipe: Recipe

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def hidden(self) -> bool:
        """Whether the base's safety checker flagged it: the image is plain grey."""
        return self.recipe.hidden

    def to_png(self, private: bool = False) -> bytes:
        """Return the image as a PNG file, with its recipe or, if `private`, with pixels only."""
        return png_with_recipe(self.image, None if private else self.recipe)
