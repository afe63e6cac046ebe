"""Commands for many images of one prompt: `sheet` (X/Y/Z grid), `endless`, `vary` (from a favourite)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro
from pydantic import Field

from ...concepts.library import Library
from ...config import GenerateRequest, Number, PromptText, Seed, SettingsBase, WholeNumber
from ...playground.variations import (
    DEFAULT_STRENGTH,
    RecipeThenLibrary,
    favourite_request,
    generate_variations,
    variation_requests,
)
from ...playground.xyz_grid import XyzGridRequest
from ...prompts import MAX_PROMPT, printable
from .output import note, progress_bar, say, say_scheduler

if TYPE_CHECKING:
    from ...image_metadata import Recipe
    from ...models import StableDiffusion
    from ...outputs import Outputs


class GenerationArgs(SettingsBase):
    """The model to generate with, and where images are saved."""

    base: str | None = None
    """Model to generate with: tiny, sd15, sd21, sdxl, a Hub id, folder or file. Default: sd15 on CUDA, else tiny."""
    safety_checker: bool = True
    """Hide images that the model's safety checker flags, if it has one."""
    library: Path = Path("concepts")
    """Folder of your concepts."""
    out: Path = Path("outputs")
    """Folder for the images, with a subfolder for each day."""
    wildcards: Path = Path("wildcards")
    """Folder of wildcards for __name__ in prompts: name.txt with one option a line, subfolders, YAML or JSON packs."""
    private: bool = False
    """Save no recipe in the images: no prompt, no settings, no names of concepts."""


class SheetArgs(GenerationArgs, XyzGridRequest):
    """Generate an X/Y/Z grid: one prompt, with one thing changed along the columns, another along the rows."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT), tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """Prompt with concept tokens, and {} where an axis puts words: 'a photo of <me/duck> {}'."""


class EndlessArgs(GenerationArgs, GenerateRequest):
    """Generate from a prompt with alternatives until Ctrl-C, no image twice. The same command continues later."""

    prompt: Annotated[PromptText, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """Prompt with alternatives: 'a {samurai|cowboy} in the style of <me/ink>'."""
    n: ClassVar[int] = 1
    every: ClassVar[bool] = False
    limit: Annotated[int, WholeNumber, Field(ge=1, le=1_000_000)] | None = None
    """Stop after this many images. Default: on Ctrl-C."""


class VaryArgs(GenerationArgs):
    """Generate variations of an image from the recipe in it, and a grid of them with the image itself first."""

    picture: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """Image with its recipe in it."""
    near: Annotated[float, Number, Field(gt=0, le=1)] | None = None
    """Variation strength: 0.1 is close to the image, 1 another image. Default: 0.15 if no other variation is given."""
    strength: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Concept at other strengths: '<me/duck>=0.6,0.8,1'. May be given several times."""
    words: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Other words in place of one: 'beach=snow|space'. May be given several times."""
    start: bool = False
    """The same prompt, with the image itself as the start image (img2img)."""
    change: Annotated[float, Number, Field(gt=0, le=1)] = DEFAULT_STRENGTH
    """Denoising strength of --start."""
    n: Annotated[Annotated[int, WholeNumber, Field(ge=1, le=100)] | None, tyro.conf.arg(aliases=("-n",))] = None
    """Number of images. Default: 8 for --near, 4 for --start."""
    near_seed: Seed = 1
    """Variation seed of the first image of --near."""
    base: str | None = None
    """Model to generate with. Default: the one of the recipe, if its name is tiny, sd15, sd21 or sdxl."""
    anyway: bool = False
    """Accept another model or other versions of concepts, though that changes more than requested."""


def sheet_command(settings: SheetArgs) -> int:
    from ... import storage
    from ...generation import Generator
    from ...generation.request_checks import check_requests
    from ...models.loading import kind_of
    from ...playground.xyz_grid import CheckpointConcepts
    from ...playground.xyz_grid import generate_grid as draw
    from ...training.control import StopSignals

    concepts = Library(settings.library)
    storage.check_folder(settings.out)
    checkpoints = [run.token_at(step) for run in settings.runs for step in run.steps]
    requests = list({cell.request: None for cell in settings.cells})
    note(check_requests(requests, concepts, settings.wildcards, kind_of(settings.base), checkpoints))
    base = _load_base(settings, settings.base)
    for run in settings.runs:
        concepts = CheckpointConcepts(concepts, run, base)
    generator = Generator(base, concepts, settings.wildcards)
    with _open_outputs(settings) as outputs, progress_bar("drawing") as advance, StopSignals() as stop:
        saved = draw(settings, generator, outputs, settings.private, advance, lambda: bool(stop.signal_number))
    _print_paths([*saved.grids, saved.page], saved.hidden)
    return 0


def endless_command(settings: EndlessArgs) -> int:
    from ... import storage
    from ...generation import Generator
    from ...generation.request_checks import check_template
    from ...models.loading import kind_of
    from ...playground.endless import EndlessSeries
    from ...playground.endless import generate_endless as draw
    from ...training.control import StopSignals

    request = GenerateRequest(**{name: getattr(settings, name) for name in GenerateRequest.model_fields})
    say_scheduler(request)
    series, library = EndlessSeries(request, settings.wildcards), Library(settings.library)
    storage.check_folder(settings.out)
    note(check_template(request, library, settings.wildcards, kind_of(settings.base)))
    generator = Generator(_load_base(settings, settings.base), library, settings.wildcards)
    say(f"{series.combinations:,} combinations of the alternatives, with a new seed each time. Ctrl-C ends it.")
    with _open_outputs(settings) as outputs, progress_bar("drawing") as advance, StopSignals(what="picture") as stop:
        for path, hidden in draw(
            series, generator, outputs, settings.limit, settings.private, advance, lambda: bool(stop.signal_number)
        ):
            _print_paths([path], [hidden])
    return 0


def vary(settings: VaryArgs) -> int:
    from ... import storage
    from ...generation import Generator
    from ...generation.img2img import open_image
    from ...generation.request_checks import check_requests
    from ...image_metadata import MAX_IMAGE_BYTES, Recipe, read_recipe
    from ...models.loading import kind_of
    from ...playground.reproduce import base_mismatches, raise_mismatches
    from ...training.control import StopSignals

    recipe = read_recipe(storage.read_bytes(settings.picture, MAX_IMAGE_BYTES), settings.picture.name)
    is_recipe, library = isinstance(recipe, Recipe), Library(settings.library)
    others = settings.near is not None or settings.strength or settings.words
    favourite = favourite_request(recipe, image_only=settings.start and not others)
    requests = _variation_requests(favourite, settings)
    # Anything missing is reported before anything large is loaded.
    concepts = RecipeThenLibrary(recipe, library, settings.anyway) if is_recipe else library
    for remark in () if is_recipe else recipe.notes:
        say(remark)
    name = settings.base or (_recipe_base_name(recipe) if is_recipe else None)
    storage.check_folder(settings.out)
    check_requests([favourite, *requests], concepts, settings.wildcards, kind_of(name))
    image = open_image(settings.picture)
    base = _load_base(settings, name)
    raise_mismatches(base_mismatches(recipe, base.name, base.version) if is_recipe else [], settings.anyway)
    generator = Generator(base, concepts, settings.wildcards)
    with _open_outputs(settings) as outputs, progress_bar("drawing") as advance, StopSignals() as stop:
        saved = generate_variations(
            (favourite, image),
            requests,
            generator,
            outputs,
            settings.private,
            advance,
            lambda: bool(stop.signal_number),
        )
    _print_paths([*saved.images, saved.grid], saved.hidden)
    return 0


def _load_base(settings: GenerationArgs, name: str | None) -> StableDiffusion:
    from ...models import describe_base, load_base

    base = load_base(name, safety=settings.safety_checker)
    say(describe_base(base, name, with_safety=True))
    return base


@contextmanager
def _open_outputs(settings: GenerationArgs) -> Iterator[Outputs]:
    """Open the folder of images; its page is rewritten at the end, whatever happens."""
    from ...outputs import Outputs, write_page

    outputs = Outputs(settings.out)
    try:
        yield outputs
    finally:
        if outputs.days():
            write_page(outputs)


def _print_paths(paths: Sequence[Path], hidden: Sequence[bool]) -> None:
    from ...image_metadata import describe_hidden

    for path in paths:
        say(printable(str(path), 300))
    if note := describe_hidden(hidden):
        say(note)


def _variation_requests(favourite: GenerateRequest, settings: VaryArgs) -> list[GenerateRequest]:
    return variation_requests(
        favourite,
        settings.picture,
        variation_strength=settings.near,
        n=settings.n,
        seed=settings.near_seed,
        strength=settings.strength,
        word=settings.words,
        start=settings.start,
        change=settings.change,
    )


def _recipe_base_name(recipe: Recipe) -> str:
    from ...models.loading import BUILT_IN, SHORT_NAMES
    from ...playground.reproduce import base_to_load

    return base_to_load(recipe, {BUILT_IN, *SHORT_NAMES})


COMMANDS = {
    "sheet": (sheet_command, SheetArgs),
    "endless": (endless_command, EndlessArgs),
    "vary": (vary, VaryArgs),
}
