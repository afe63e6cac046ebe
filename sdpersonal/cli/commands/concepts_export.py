"""Run `concepts export` and `concepts gallery`: write concepts for other programs and for readers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import tyro

from ... import storage
from ...concepts import exporters
from ...concepts.exporters import Export, Format
from ...concepts.library import Library
from ...config import SettingsBase, TokenText
from ...errors import UserError, printable
from ...prompts import Token
from ..terminal import print_json, progress_bar, say
from .concepts_list import ListArgs


class ExportArgs(SettingsBase):
    """Export a concept in another program's format, with a README."""

    token: Annotated[TokenText, tyro.conf.Positional, tyro.conf.arg(metavar="TOKEN")]
    """For example '<me/duck>'; without a version, the newest."""
    format: Format = "native"
    """Format to write. The native file already works in A1111, ComfyUI and kohya's scripts."""
    to: Path | None = None
    """New folder for the files. Default: OWNER-NAME-FORMAT in the current folder."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON: the folder, where each file goes, and what to type."""
    library: Path = Path("concepts")
    """Folder of your concepts."""


class GalleryArgs(ListArgs):
    """Write an HTML page with all concepts of a library, which needs no server."""

    to: Path
    """Folder for index.html."""
    title: str = "Concepts"
    """Title of the page."""


def export_concept(settings: ExportArgs) -> int:
    concept = Library(settings.library).get(Token.parse(settings.token))
    made = exporters.export(concept, settings.format)
    folder = settings.to or Path(f"{concept.token.slug}-{settings.format}")
    write_export(made, folder)
    if settings.json_:
        facts = {"folder": str(folder), "files": made.destinations, "type": made.prompt_text, "notes": list(made.notes)}
        print_json(facts)
    else:
        say("\n".join(_lines(made, folder)))
    return 0


def write_export(made: Export, folder: Path) -> None:
    """Write the files into a folder that appears completely or not at all. Raises DiskFull, UserError."""
    if os.path.lexists(folder):
        raise UserError(f"{printable(str(folder), 200)} is there already.", "Give a folder that is not: --to FOLDER.")
    with storage.new_folder(folder) as staged:
        for name, data in made.files.items():
            path = storage.resolve_inside(staged, name)
            storage.make_folder(path.parent)
            storage.write_bytes(path, data)


def _lines(made: Export, folder: Path) -> list[str]:
    width = max(map(len, made.destinations))
    lines = [f"{printable(str(folder), 200)} is ready for {made.program}:"]
    lines += [f"  {name:{width}}  goes to {place}" for name, place in made.destinations.items()]
    lines.append(f"Type: {printable(made.prompt_text, 300)}" if made.prompt_text else "Nothing has to be typed.")
    return [*lines, *(f"Note: {note}" for note in made.notes), "README.md says more."]


def export_gallery(settings: GalleryArgs) -> int:
    from ...concepts.gallery import write_gallery

    entries = Library(settings.library).entries()
    if not entries:
        raise UserError(f"No concepts in {printable(str(settings.library))}.", "Give the folder with --library.")
    with progress_bar("gallery") as advance:
        path, num_shown = write_gallery(entries, settings.to, settings.title, advance)
    if settings.json_:
        print_json({"gallery": str(path), "concepts": num_shown})
    else:
        say(f"{num_shown} concepts, {path.stat().st_size / 1e6:.1f} MB: {printable(str(path))}")
    return 0


COMMANDS = {
    "concepts export": (export_concept, ExportArgs),
    "concepts gallery": (export_gallery, GalleryArgs),
}
