"""Pictures that are there already: `redo` draws one again, `outputs` looks after the folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from ...concepts.library import Library
from ...config import Settings
from ...errors import PersonalError
from ...prompts import show
from .output import bar, say, say_json

if TYPE_CHECKING:
    from PIL import Image

    from ...image_metadata import Foreign


class Redoing(Settings):
    """Draw a picture again from the recipe in it: the same bytes on the same device."""

    picture: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """A PNG that sdpersonal has drawn."""
    base: str | None = None
    """Model to draw with. Default: the one that drew it, if its name is tiny, sd15, sd21 or sdxl."""
    library: Path = Path("concepts")
    """Folder that keeps your concepts."""
    out: Path = Path("outputs")
    """Folder for the picture."""
    start: Path | None = None
    """The picture it began from, if it did."""
    mask: Path | None = None
    """The mask it was drawn with, if it was."""
    anyway: bool = False
    """Draw with another base, other versions of concepts or other start pictures too, though that changes it."""


class Looking(Settings):
    """Write the page of all your pictures, index.html in their folder."""

    out: Path = Path("outputs")
    """Folder of the pictures."""
    title: str = "Pictures"
    """What stands on top."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class Marking(Settings):
    """Keep copies of pictures as favourites; the page shows them first."""

    pictures: Annotated[tuple[Path, ...], Field(min_length=1), tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """Pictures in the folder."""
    undo: bool = False
    """Remove the copies instead."""
    out: Path = Path("outputs")
    """Folder of the pictures."""


def redo(settings: Redoing) -> int:
    from ... import storage
    from ...image_metadata import MAX_PICTURE, Recipe, png, read_recipe
    from ...playground.reproduce import Pinned, base_name, base_troubles, picture_troubles, raise_any

    data = storage.read_bytes(settings.picture, MAX_PICTURE)
    recipe = read_recipe(data, settings.picture.name)
    if not isinstance(recipe, Recipe):
        raise _not_ours(settings.picture.name, recipe)
    # What is missing is said before anything large is loaded.
    concepts = Pinned(recipe, Library(settings.library), settings.anyway)
    storage.check_folder(settings.out)
    raise_any(picture_troubles(recipe, _sum(settings.start), _sum(settings.mask, "black")), settings.anyway)

    from ...generation import Generator
    from ...models import introduction, load_base
    from ...models.loading import BUILT_IN, SHORT_NAMES
    from ...outputs import Outputs, write_page

    name = settings.base or base_name(recipe, {BUILT_IN, *SHORT_NAMES})
    base = load_base(name)
    raise_any(base_troubles(recipe, base.name, base.version), settings.anyway)
    say(introduction(base, name))
    with bar("drawing") as advance:
        request = recipe.batch_request(settings.start, settings.mask)
        picture = list(Generator(base, concepts).draw(request, progress=advance))[recipe.place]
    outputs = Outputs(settings.out)
    path = outputs.save(png(picture.image, picture.recipe.model_copy(update={"template": recipe.template})))
    write_page(outputs)
    say(f"{path}: {_likeness(data, picture.image)}")
    return 0


def look(settings: Looking) -> int:
    from ...outputs import Outputs, write_page

    outputs = Outputs(settings.out)
    if not (outputs.days() or outputs.favourites()):
        raise PersonalError(f"No pictures in {show(str(settings.out))}.", "Draw some: sdpersonal generate")
    path, count = write_page(outputs, settings.title)
    say_json({"page": str(path), "pictures": count}) if settings.json_ else say(f"{count} pictures: {show(str(path))}")
    return 0


def mark(settings: Marking) -> int:
    from ...outputs import Outputs, write_page

    outputs = Outputs(settings.out)
    for picture in settings.pictures:
        if settings.undo:
            outputs.unfavourite(picture)
        else:
            say(show(str(outputs.favourite(picture)), 200))
    write_page(outputs)
    return 0


_SAME_FLAGS = ("negative", "seed", "steps", "guidance", "rescale", "size", "near", "near_seed", "change", "enlarge")
_SAME_FLAGS += ("scheduler", "clip_skip")


def _not_ours(name: str, found: Foreign) -> PersonalError:
    """What to type for something like it, and what will be different. A prompt that cannot be used keeps its words."""
    flags = {key: f"--{key.replace('_', '-')}" for key in _SAME_FLAGS if key in found.fields}
    said = {flag: str(found.fields[key]) for key, flag in flags.items()}
    values = [part for flag, value in said.items() if value for part in (flag, _argument(value))]
    program = "another program" + (f" ({found.program})" if found.program != "another program" else "")
    problem = f"{show(name)} was drawn by {program}, so the same cannot be drawn again."
    problem = "\n".join([problem, *found.notes])
    words = _argument(found.words) if found.words else "YOUR PROMPT"
    line = show(shlex.join(["sdpersonal", "generate", words, "--n", "1", *values]), 3000)
    begin = "Something like it" if found.refusal is None else "Change that in its prompt, then type"
    begin = begin if found.words else "Type a prompt of your own"
    return PersonalError(problem, f"{begin}: {line}")


def _argument(text: str) -> str:
    """The text as a command's argument: one that begins with a dash would be taken for a flag."""
    return f" {text}" if text.startswith("-") else text


def _sum(path: Path | None, behind: str = "white") -> str | None:
    from ...image_metadata import pixels_sum

    if path is None:
        return None
    from ...generation.img2img import open_picture  # decodes it as the drawing will

    return pixels_sum(open_picture(path, behind))


def _likeness(data: bytes, drawn: Image.Image) -> str:
    """How near the new picture is to the one that was given."""
    import io

    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.size != drawn.size:
                return f"drawn, but {drawn.width}x{drawn.height} where that was {picture.width}x{picture.height}"
            before = np.asarray(picture.convert("RGB"), np.int16)
    except Exception:  # Pillow raises many kinds for broken files; its recipe could be read, that is enough
        return "drawn; the pixels of the picture you gave cannot be read to compare"
    apart = np.abs(before - np.asarray(drawn.convert("RGB"), np.int16))
    if not apart.any():
        return "the same, pixel for pixel"
    share = (apart.max(axis=2) > 0).mean()
    return f"differs from it in {share:.1%} of its pixels, by at most {apart.max()}/255 (another device or version?)"


COMMANDS = {
    "redo": (redo, Redoing),
    "outputs favourite": (mark, Marking),
    "outputs": (look, Looking),  # after the longer one, which begins alike
}
