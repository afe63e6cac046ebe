"""One picture and what it was drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ..image_metadata import Recipe, png_with_recipe


@dataclass(frozen=True)
class GeneratedImage:
    """One result: an RGB image and all that is needed to draw it again."""

    image: Image.Image
    recipe: Recipe

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def hidden(self) -> bool:
        """Whether the base's safety checker flagged it: the image is plain grey."""
        return self.recipe.hidden

    def png(self, private: bool = False) -> bytes:
        """As a PNG file with its recipe in it, or with nothing but pixels."""
        return png_with_recipe(self.image, None if private else self.recipe)
