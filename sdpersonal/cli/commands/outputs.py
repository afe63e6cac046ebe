"""Run the commands `outputs ...` on the folder of generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from ...config import SettingsBase
from ...errors import UserError, printable
from ..terminal import print_json, say


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

    images: Annotated[tuple[Path, ...], Field(min_length=1), tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Images in the folder."""
    undo: bool = False
    """Remove the copies instead."""
    out: Path = Path("outputs")
    """Folder of the images."""


class ConceptAreasArgs(SettingsBase):
    """Show where each concept is in images of two to six concepts, as their recipes say: in words and as an image."""

    images: Annotated[tuple[Path, ...], Field(min_length=1), tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """PNGs that sdpersonal generated."""
    to: Path = Path("outputs/areas")
    """Folder for the images with the areas drawn over them, NAME-areas.png."""


def write_outputs_page(settings: OutputsArgs) -> int:
    from ...outputs import Outputs, write_page

    outputs = Outputs(settings.out)
    if not (outputs.days() or outputs.favourites()):
        raise UserError(f"No images in {printable(str(settings.out))}.", "Generate some: sdpersonal generate")
    path, count = write_page(outputs, settings.title)
    if settings.json_:
        print_json({"page": str(path), "pictures": count})
    else:
        say(f"{count} images: {printable(str(path))}")
    return 0


def mark_favourites(settings: FavouriteArgs) -> int:
    from ...outputs import Outputs, write_page

    outputs = Outputs(settings.out)
    for image in settings.images:
        if settings.undo:
            outputs.remove_favourite(image)
        else:
            say(printable(str(outputs.add_favourite(image)), 200))
    write_page(outputs)
    return 0


def write_concept_areas(settings: ConceptAreasArgs) -> int:
    from ... import storage
    from ...display.image_grid import encode_png
    from ...generation.image import draw_concepts
    from ...generation.img2img import open_image
    from ...image_metadata import MAX_IMAGE_BYTES, Recipe, describe_presence, read_recipe

    storage.check_folder(settings.to)
    for path in settings.images:
        recipe = read_recipe(storage.read_bytes(path, MAX_IMAGE_BYTES), path.name)
        if not isinstance(recipe, Recipe):
            raise UserError(f"{printable(path.name)} is another program's image.", "Only sdpersonal's have areas.")
        overlay = draw_concepts(open_image(path), recipe)
        storage.make_folder(settings.to)
        target = settings.to / f"{path.stem}-areas.png"
        storage.write_bytes(target, encode_png(overlay))
        for line in describe_presence(recipe):
            say(printable(line, 200))
        say(printable(str(target), 200))
    return 0


COMMANDS = {
    "outputs page": (write_outputs_page, OutputsArgs),
    "outputs favourite": (mark_favourites, FavouriteArgs),
    "outputs areas": (write_concept_areas, ConceptAreasArgs),
}
