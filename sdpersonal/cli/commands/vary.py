"""Run the command `vary`: generate variations of an image, from the recipe in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ...concepts.library import Library
from ...config import VariationSettings
from ...playground.variations import (
    RecipeThenLibrary,
    favourite_request,
    generate_variations,
    variation_requests,
)
from ..terminal import progress_bar, say
from .generate import GenerationArgs, load_model, open_outputs, print_paths

if TYPE_CHECKING:
    from ...generation.prompt_resolution import ConceptSource


class VaryArgs(GenerationArgs, VariationSettings):
    """Generate variations of an image from the recipe in it, and a grid of them with the image itself first."""

    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Image with its recipe in it."""
    base: str | None = None
    """Model to generate with. Default: the one of the recipe, if its name is tiny, sd15, sd21 or sdxl."""
    anyway: bool = False
    """Accept another model or other versions of concepts, though that changes more than requested."""

    @classmethod
    def present_name(cls, name: str, value: object = None) -> str:
        if name == "start":
            return "img2img"
        if name == "strength" and isinstance(value, str) and "=" in value:  # '<me/duck>=0.6,0.8' of the version before
            return "concept_strength"
        return super().present_name(name, value)


def vary(settings: VaryArgs) -> int:
    from ... import storage
    from ...generation import Generator
    from ...generation.img2img import open_image
    from ...generation.request_checks import check_requests
    from ...image_metadata import MAX_IMAGE_BYTES, Recipe, read_recipe
    from ...models.loading import kind_of
    from ...playground.reproduce import base_mismatches, base_to_load, raise_mismatches
    from ...training.control import StopSignals

    recipe = read_recipe(storage.read_bytes(settings.image, MAX_IMAGE_BYTES), settings.image.name)
    exact, library = recipe if isinstance(recipe, Recipe) else None, Library(settings.library)
    favourite = favourite_request(recipe, settings)
    requests = variation_requests(favourite, settings.image, settings)
    # Anything missing is reported before anything large is loaded.
    concepts: ConceptSource = RecipeThenLibrary(exact, library, settings.anyway) if exact else library
    for remark in () if isinstance(recipe, Recipe) else recipe.notes:
        say(remark)
    name = settings.base or (base_to_load(exact) if exact else None)
    storage.check_folder(settings.out)
    check_requests([favourite, *requests], concepts, settings.wildcards, kind_of(name))
    image = open_image(settings.image)
    base = load_model(settings, name)
    raise_mismatches(base_mismatches(exact, base.name, base.version) if exact else [], settings.anyway)
    generator = Generator(base, concepts, settings.wildcards)
    with open_outputs(settings) as outputs, progress_bar("generating") as advance, StopSignals() as stop:
        saved = generate_variations(
            (favourite, image),
            requests,
            generator,
            outputs,
            settings.private,
            advance,
            lambda: bool(stop.signal_number),
        )
    print_paths([*saved.images, saved.grid], saved.hidden)
    return 0


COMMANDS = {"vary": (vary, VaryArgs)}
