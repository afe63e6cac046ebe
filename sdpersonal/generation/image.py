"""Hold generated images: Pillow images with their recipes, and a list of them that a notebook shows as a grid."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, SupportsIndex, overload

from PIL import Image

from .. import storage
from ..config.text_checks import check_path
from ..display.concept_overlay import ConceptArea, draw_concept_areas
from ..display.image_grid import captioned_grid, differing_words, encode_png
from ..errors import UserError, printable
from ..image_metadata import Recipe, png_with_recipe, recipe_as_exif, recipe_as_png_text
from ..outputs import Outputs, write_page

_EXIF_FORMATS = ("JPEG", "WEBP", "AVIF")  # formats of which programs read the recipe from Exif
_MAX_EXIF_BYTES = 65_000  # a JPEG segment's length has 16 bits
_MAX_TILE = 512  # pixels of an image in a grid


class GeneratedImage(Image.Image):
    """A generated RGB image, and in `recipe` all that is needed to generate it again.

    It is a Pillow image. What is made from it (`resize`, `crop`, ...) is a plain one, without the recipe.
    """

    def __init__(self, image: Image.Image, recipe: Recipe):
        super().__init__()
        rgb = image.convert("RGB")  # a copy
        self.im, self._mode, self._size = rgb.im, rgb.mode, rgb.size  # as Pillow's own formats do
        self.recipe = recipe

    @property
    def image(self) -> Image.Image:
        """A copy without the recipe, a plain Pillow image."""
        return super().copy()

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def hidden(self) -> bool:
        """Whether the base's safety checker flagged it: the image is plain grey."""
        return self.recipe.hidden

    def concept_overlay(self) -> Image.Image:
        """Draw where each concept is over the image. Raises UserError if that was not measured."""
        return draw_concepts(self.image, self.recipe)

    def to_png(self, private: bool = False) -> bytes:
        """Return the image as a PNG file, with its recipe or, if `private`, with pixels only."""
        return png_with_recipe(self.image, None if private else self.recipe)

    def save(
        self,
        fp: str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes],
        format: str | None = None,
        *,
        private: bool = False,
        **params: Any,
    ) -> None:
        """Save with the recipe: in a PNG, exactly; in JPEG, WebP and AVIF the text that A1111 writes there.

        A file is replaced as a whole or not at all.

        Args:
            format, params: as in Pillow; the format is that of the file name's ending by default.
            private: save the pixels only.

        Raises:
            UserError: for an ending that is no image format, and where the file cannot be written.
        """
        if not isinstance(fp, str | bytes | os.PathLike):
            self._encode(fp, format or "PNG", private, params)
            return
        path = Path(os.fsdecode(fp))
        check_path(path, "The file's path")
        buffer = io.BytesIO()
        self._encode(buffer, format or _format_of(path), private, params)
        storage.write_bytes(path, buffer.getvalue())

    def _encode(self, file: IO[bytes], format: str, private: bool, params: dict[str, Any]) -> None:
        if not private and format.upper() == "PNG":
            params = {"pnginfo": recipe_as_png_text(self.recipe)} | params
        elif not private and format.upper() in _EXIF_FORMATS:
            exif = recipe_as_exif(self.recipe)
            params = ({"exif": exif} if len(exif) <= _MAX_EXIF_BYTES else {}) | params
        super().save(file, format, **params)

    def copy(self) -> GeneratedImage:
        return GeneratedImage(self.image, self.recipe)

    __copy__ = copy

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and isinstance(other, GeneratedImage) and self.recipe == other.recipe

    __hash__ = None  # type: ignore[assignment]  # as any Pillow image: its pixels can change

    def __reduce__(self) -> tuple[Any, ...]:
        return GeneratedImage, (self.image, self.recipe)

    def __repr__(self) -> str:
        prompt = printable(self.recipe.prompt, 100)
        return f"<GeneratedImage {self.width}x{self.height}, seed {self.seed}, {prompt!r}>"

    def _repr_jpeg_(self) -> None:
        """Return nothing: a notebook would store the image twice."""


def draw_concepts(image: Image.Image, recipe: Recipe) -> Image.Image:
    """Draw where the concepts of a recipe are over its image. Raises UserError if that was not measured."""
    presences = [(concept.token, concept.presence) for concept in recipe.concepts]
    areas = [ConceptArea(token, presence.box, presence.heat) for token, presence in presences if presence]
    if not areas:
        raise UserError(
            "Where the concepts are in this image is not known.",
            "It is measured for prompts with two to six concepts.",
        )
    return draw_concept_areas(image, areas)


def _format_of(path: Path) -> str:
    """Return Pillow's name of the format of a path's ending. Raises UserError."""
    format = Image.registered_extensions().get(path.suffix.lower())
    if format not in Image.SAVE:
        ending = printable(path.suffix) or "no ending"
        raise UserError(
            f"{printable(str(path), 200)} has {ending}, so its image format is unknown.",
            "Use .png, which holds the whole recipe, or .jpg or .webp.",
        )
    return format


class GeneratedImages(list[GeneratedImage]):
    """A list of generated images, which a notebook shows as a grid with their seeds."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> GeneratedImage: ...
    @overload
    def __getitem__(self, index: slice) -> GeneratedImages: ...
    def __getitem__(self, index: SupportsIndex | slice) -> GeneratedImage | GeneratedImages:
        items = super().__getitem__(index)
        return GeneratedImages(items) if isinstance(items, list) else items

    @property
    def recipes(self) -> list[Recipe]:
        return [image.recipe for image in self]

    def grid(self, tile_size: int | None = None, private: bool = False) -> Image.Image:
        """Draw all images in one, each with the words that only its prompt has, and its seed, above it.

        Args:
            tile_size: pixels of the side of each. Default: the size of the largest, up to 512.
            private: without any text.
        """
        if not self:
            raise UserError("There are no images for a grid.")
        captions = [""] * len(self) if private else _captions(self.recipes)
        largest = max(max(image.size) for image in self)
        images = [image.image for image in self]
        return captioned_grid(list(zip(images, captions, strict=True)), tile_size or min(largest, _MAX_TILE))

    def save(self, folder: str | os.PathLike[str] = "outputs", private: bool = False) -> list[Path]:
        """Save as the command line does: a numbered PNG each in the folder of the day, and a page of all in `folder`.

        private: save no recipes. Returns: the paths. Raises: UserError, DiskFull.
        """
        outputs = Outputs(folder)
        paths = [outputs.save(image.to_png(private)) for image in self]
        if paths:
            write_page(outputs)
        return paths

    def _repr_png_(self) -> bytes | None:
        return encode_png(self.grid()) if self else None


def _captions(recipes: Iterable[Recipe]) -> list[str]:
    """Caption each image with the words that differ and its seeds."""
    recipes = list(recipes)
    words = [printable(text, 200) for text in differing_words([recipe.prompt for recipe in recipes])]
    variations = [f"variation {recipe.variation_seed}" if recipe.variation_strength else "" for recipe in recipes]
    seeds = [f"seed {recipe.seed}" for recipe in recipes]
    return [", ".join(filter(None, texts)) for texts in zip(words, seeds, variations, strict=True)]
