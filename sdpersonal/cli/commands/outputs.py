"""Commands for existing images: `redo` generates one again, `outputs` manages their folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from ...concepts.library import Library
from ...config import SettingsBase
from ...errors import UserError
from ...prompts import printable
from .output import print_json, progress_bar, say

if TYPE_CHECKING:
    from PIL import Image

    from ...image_metadata import Foreign


class RedoArgs(SettingsBase):
    """Generate an image again from the recipe in it: the same bytes on the same device."""

    picture: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """PNG that sdpersonal generated."""
    base: str | None = None
    """Model to generate with. Default: the one of the recipe, if its name is tiny, sd15, sd21 or sdxl."""
    library: Path = Path("concepts")
    """Folder of your concepts."""
    out: Path = Path("outputs")
    """Folder for the image."""
    start: Path | None = None
    """Start image that it was generated from, if any."""
    mask: Path | None = None
    """Mask that it was generated with, if any."""
    anyway: bool = False
    """Accept another model, other versions of concepts or another start image, though the result will differ."""


class OutputsArgs(SettingsBase):
    """Write an HTML page of all your images, index.html in their folder."""

    out: Path = Path("outputs")
    """Folder of the images."""
    title: str = "Pictures"
    """Title of the page."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class FavouriteArgs(SettingsBase):
    """Keep copies of images as favourites; the page shows them first."""

    pictures: Annotated[tuple[Path, ...], Field(min_length=1), tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """Images in the folder."""
    undo: bool = False
    """Remove the copies instead."""
    out: Path = Path("outputs")
    """Folder of the images."""


def redo(settings: RedoArgs) -> int:
    from ... import storage
    from ...image_metadata import MAX_IMAGE_BYTES, Recipe, png_with_recipe, read_recipe
    from ...playground.reproduce import (
        PinnedConcepts,
        base_mismatches,
        base_to_load,
        image_mismatches,
        raise_mismatches,
    )

    data = storage.read_bytes(settings.picture, MAX_IMAGE_BYTES)
    recipe = read_recipe(data, settings.picture.name)
    if not isinstance(recipe, Recipe):
        raise _foreign_image_error(settings.picture.name, recipe)
    # Anything missing is reported before anything large is loaded.
    concepts = PinnedConcepts(recipe, Library(settings.library), settings.anyway)
    storage.check_folder(settings.out)
    raise_mismatches(
        image_mismatches(recipe, _pixel_hash(settings.start), _pixel_hash(settings.mask, "black")), settings.anyway
    )

    from ...generation import Generator
    from ...models import describe_base, load_base
    from ...models.loading import BUILT_IN, SHORT_NAMES
    from ...outputs import Outputs, write_page

    name = settings.base or base_to_load(recipe, {BUILT_IN, *SHORT_NAMES})
    base = load_base(name)
    raise_mismatches(base_mismatches(recipe, base.name, base.version), settings.anyway)
    say(describe_base(base, name))
    with progress_bar("drawing") as advance:
        request = recipe.batch_request(settings.start, settings.mask)
        picture = list(Generator(base, concepts).generate(request, progress=advance))[recipe.place]
    outputs = Outputs(settings.out)
    path = outputs.save(png_with_recipe(picture.image, picture.recipe.model_copy(update={"template": recipe.template})))
    write_page(outputs)
    say(f"{path}: {_compare_pixels(data, picture.image)}")
    return 0


def write_outputs_page(settings: OutputsArgs) -> int:
    from ...outputs import Outputs, write_page

    outputs = Outputs(settings.out)
    if not (outputs.days() or outputs.favourites()):
        raise UserError(f"No pictures in {printable(str(settings.out))}.", "Generate some: sdpersonal generate")
    path, count = write_page(outputs, settings.title)
    print_json({"page": str(path), "pictures": count}) if settings.json_ else say(
        f"{count} pictures: {printable(str(path))}"
    )
    return 0


def mark_favourites(settings: FavouriteArgs) -> int:
    from ...outputs import Outputs, write_page

    outputs = Outputs(settings.out)
    for image in settings.pictures:
        if settings.undo:
            outputs.remove_favourite(image)
        else:
            say(printable(str(outputs.add_favourite(image)), 200))
    write_page(outputs)
    return 0


_SAME_FLAGS = ("negative", "seed", "steps", "guidance", "rescale", "size", "near", "near_seed", "change", "enlarge")
_SAME_FLAGS += ("scheduler", "clip_skip")


def _foreign_image_error(name: str, foreign: Foreign) -> UserError:
    """Suggest a command for a similar image, and say what will differ. An unusable prompt is quoted as it is."""
    flags = {key: f"--{key.replace('_', '-')}" for key in _SAME_FLAGS if key in foreign.fields}
    values_by_flag = {flag: str(foreign.fields[key]) for key, flag in flags.items()}
    values = [part for flag, value in values_by_flag.items() if value for part in (flag, _argument(value))]
    program = "another program" + (f" ({foreign.program})" if foreign.program != "another program" else "")
    problem = f"{printable(name)} was drawn by {program}, so the same cannot be drawn again."
    problem = "\n".join([problem, *foreign.notes])
    words = _argument(foreign.words) if foreign.words else "YOUR PROMPT"
    line = printable(shlex.join(["sdpersonal", "generate", words, "--n", "1", *values]), 3000)
    begin = "Something like it" if foreign.refusal is None else "Change that in its prompt, then type"
    begin = begin if foreign.words else "Type a prompt of your own"
    return UserError(problem, f"{begin}: {line}")


def _argument(text: str) -> str:
    """Return the text as a command's argument: one that begins with a dash would be taken for a flag."""
    return f" {text}" if text.startswith("-") else text


def _pixel_hash(path: Path | None, behind: str = "white") -> str | None:
    from ...image_metadata import pixels_sha256

    if path is None:
        return None
    from ...generation.img2img import open_image  # decodes it as generation will

    return pixels_sha256(open_image(path, behind))


def _compare_pixels(data: bytes, drawn: Image.Image) -> str:
    """Describe how close the new image is to the given one."""
    import io

    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.size != drawn.size:
                return f"drawn, but {drawn.width}x{drawn.height} where that was {picture.width}x{picture.height}"
            before = np.asarray(picture.convert("RGB"), np.int16)
    except Exception:  # Pillow raises many kinds for broken files; a readable recipe is enough
        return "drawn; the pixels of the picture you gave cannot be read to compare"
    apart = np.abs(before - np.asarray(drawn.convert("RGB"), np.int16))
    if not apart.any():
        return "the same, pixel for pixel"
    share = (apart.max(axis=2) > 0).mean()
    return f"differs from it in {share:.1%} of its pixels, by at most {apart.max()}/255 (another device or version?)"


COMMANDS = {
    "redo": (redo, RedoArgs),
    "outputs favourite": (mark_favourites, FavouriteArgs),
    "outputs": (write_outputs_page, OutputsArgs),  # after the longer command, which begins with the same word
}
