"""The command `vary`: variations of an image, from the recipe in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from ...concepts.library import Library
from ...config import GenerateRequest, Number, Seed, WholeNumber
from ...playground.variations import (
    DEFAULT_STRENGTH,
    RecipeThenLibrary,
    favourite_request,
    generate_variations,
    variation_requests,
)
from ..terminal import progress_bar, say
from .generate import GenerationArgs, load_model, open_outputs, print_paths

if TYPE_CHECKING:
    from ...generation.prompt_resolution import ConceptSource


class VaryArgs(GenerationArgs):
    """Generate variations of an image from the recipe in it, and a grid of them with the image itself first."""

    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Image with its recipe in it."""
    variation_strength: Annotated[float, Number, Field(gt=0, le=1)] | None = None
    """How far from the image: 0.1 is close, 1 is another image. Default: 0.15 if no other variation is given."""
    concept_strength: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Concept at other strengths: '<me/duck>=0.6,0.8,1'. May be given several times."""
    words: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Other words in place of one: 'beach=snow|space'. May be given several times."""
    img2img: bool = False
    """The same prompt, with the image itself as the initial image."""
    strength: Annotated[float, Number, Field(gt=0, le=1)] = DEFAULT_STRENGTH
    """Denoising strength of --img2img."""
    num_images: Annotated[Annotated[int, WholeNumber, Field(ge=1, le=100)] | None, tyro.conf.arg(aliases=("-n",))] = (
        None
    )
    """Number of images. Default: 8 for --variation-strength, 4 for --img2img."""
    variation_seed: Seed = 1
    """Variation seed of the first image of --variation-strength."""
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
    others = settings.variation_strength is not None or settings.concept_strength or settings.words
    favourite = favourite_request(recipe, image_only=settings.img2img and not others)
    requests = _variation_requests(favourite, settings)
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


def _variation_requests(favourite: GenerateRequest, settings: VaryArgs) -> list[GenerateRequest]:
    return variation_requests(
        favourite,
        settings.image,
        variation_strength=settings.variation_strength,
        num_images=settings.num_images,
        seed=settings.variation_seed,
        concept_strengths=settings.concept_strength,
        words=settings.words,
        img2img=settings.img2img,
        strength=settings.strength,
    )


COMMANDS = {"vary": (vary, VaryArgs)}
