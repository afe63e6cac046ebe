"""The command `redo`: an image again, from the recipe in it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ...concepts.library import Library
from ...config import SettingsBase
from ...errors import UserError
from ...prompts import printable
from ..terminal import progress_bar, say

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
        picture = list(Generator(base, concepts).draw(request, progress=advance))[recipe.place]
    outputs = Outputs(settings.out)
    path = outputs.save(png_with_recipe(picture.image, picture.recipe.model_copy(update={"template": recipe.template})))
    write_page(outputs)
    say(f"{path}: {_compare_pixels(data, picture.image)}")
    return 0


_SAME_FLAGS = ("negative", "seed", "steps", "guidance", "rescale", "size", "near", "near_seed", "change", "enlarge")
_SAME_FLAGS += ("scheduler", "clip_skip")


def _foreign_image_error(name: str, found: Foreign) -> UserError:
    """Suggest a command for a similar image, and say what will differ. An unusable prompt is quoted as it is."""
    flags = {key: f"--{key.replace('_', '-')}" for key in _SAME_FLAGS if key in found.fields}
    values_by_flag = {flag: str(found.fields[key]) for key, flag in flags.items()}
    values = [part for flag, value in values_by_flag.items() if value for part in (flag, _argument(value))]
    program = "another program" + (f" ({found.program})" if found.program != "another program" else "")
    problem = f"{printable(name)} was drawn by {program}, so the same cannot be drawn again."
    problem = "\n".join([problem, *found.notes])
    words = _argument(found.words) if found.words else "YOUR PROMPT"
    line = printable(shlex.join(["sdpersonal", "generate", words, "--n", "1", *values]), 3000)
    begin = "Something like it" if found.refusal is None else "Change that in its prompt, then type"
    begin = begin if found.words else "Type a prompt of your own"
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


COMMANDS = {"redo": (redo, RedoArgs)}
