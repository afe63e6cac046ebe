"""Find saved images by their ids, and list thousands of them quickly.

An id is DAY/STEM: "2026-11-28/00012-abcdef12". Facts of images that were listed before stay in memory: a name contains
digits of the content's hash, so they hold as long as the file is there.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import storage
from ..errors import UserError
from .facts import Facts, load_facts, read_facts
from .folder import DAY_NAME, FAVOURITE_NAME, FAVOURITES_FOLDER, GRID_NAME, IMAGE_NAME, Outputs

_MAX_FACTS = 100_000  # images whose facts stay in memory, of all folders
_ID = re.compile(rf"({DAY_NAME.pattern})/([0-9]{{5,9}}-[0-9a-z-]{{1,20}})")
_NO_FACTS: Facts = {"prompt": "", "negative": "", "facts": [], "width": 0, "height": 0}


@dataclass(frozen=True)
class SavedImage:
    """A saved image or grid. path: its file, or its copy in the favourites if that is all there is."""

    day: str
    name: str
    path: Path
    is_favourite: bool

    @property
    def id(self) -> str:
        return f"{self.day}/{self.name[:-4]}"

    @property
    def kind(self) -> Literal["image", "grid"]:
        return "image" if IMAGE_NAME.fullmatch(self.name) else "grid"

    @property
    def number(self) -> str:
        """The number within the day, as in the name."""
        return self.name.partition("-")[0]


def parse_id(image_id: object) -> tuple[str, str]:
    """Return the day and the file name of an image's id. Raises UserError for any other text."""
    match = _ID.fullmatch(image_id) if isinstance(image_id, str) else None
    name = f"{match[2]}.png" if match else ""
    if match is None or not (IMAGE_NAME.fullmatch(name) or GRID_NAME.fullmatch(name)):
        raise UserError("That is not an image.", "Choose one from the gallery.")
    return match[1], name


def sort_key(day: str, name: str) -> tuple[str, int, bool, str]:
    """Return the place of an image among others, ascending with time; a grid comes after its first image."""
    return day, int(name.partition("-")[0]), bool(GRID_NAME.fullmatch(name)), name


class ImageIndex:
    """The images of any number of outputs folders. Methods raise UserError, and may be called from any thread."""

    def __init__(self) -> None:
        self._facts: OrderedDict[Path, dict[str, Facts]] = OrderedDict()  # by folder, the least recently used first
        self._lock = threading.Lock()

    def images(self, outputs: Outputs, favourites_only: bool = False) -> list[SavedImage]:
        """List the images and grids of a folder, newest first; favourites also if only their copy is left."""
        marked = {(match[1], match[2]) for name in outputs.favourites() if (match := FAVOURITE_NAME.fullmatch(name))}
        days = {day for day, _ in marked} if favourites_only else {*outputs.days(), *(day for day, _ in marked)}
        images = []
        for day in sorted(days, reverse=True):
            there, copies = {*outputs.images(day)}, {name for other, name in marked if other == day}
            names = copies if favourites_only else there | copies | {*outputs.grids(day)}
            for name in sorted(names, key=lambda name: sort_key(day, name), reverse=True):
                path = _file(outputs, day, name, copy=name in copies and name not in there)
                images.append(SavedImage(day, name, path, name in copies))
        return images

    def find(self, outputs: Outputs, image_id: object) -> SavedImage:
        """Return the image with this id. Raises UserError if there is none."""
        day, name = parse_id(image_id)
        copy = _file(outputs, day, name, copy=True)
        is_favourite = copy.is_file()
        for path in (_file(outputs, day, name), copy):
            if path.is_file() and storage.resolve_inside(outputs.folder, str(path.relative_to(outputs.folder))):
                return SavedImage(day, name, path, is_favourite)
        raise UserError("This image is gone.", "It was deleted; bring it back from the trash if you need it.")

    def facts(self, images: Sequence[SavedImage]) -> dict[SavedImage, Facts]:
        """Return the facts of images; a grid has the prompt of its first image."""
        by_folder: dict[Path, list[str]] = {}
        for image in images:
            if image.kind == "image":
                by_folder.setdefault(image.path.parent, []).append(image.path.name)
        loaded = {folder: self._folder_facts(folder, names) for folder, names in by_folder.items()}
        return {
            image: loaded[image.path.parent][image.path.name] if image.kind == "image" else self._grid_facts(image)
            for image in images
        }

    def _folder_facts(self, folder: Path, names: Sequence[str]) -> Mapping[str, Facts]:
        with self._lock:
            known = self._facts.setdefault(folder, {})
            self._facts.move_to_end(folder)
            missing = [name for name in names if name not in known]
        if len(missing) > 1:
            loaded = load_facts(folder, missing, prune=False)
        else:
            loaded = {name: read_facts(folder / name) for name in missing}
        with self._lock:
            known |= loaded
            while sum(map(len, self._facts.values())) > _MAX_FACTS and len(self._facts) > 1:
                self._facts.popitem(last=False)
        return known

    def _grid_facts(self, grid: SavedImage) -> Facts:
        facts = read_facts(grid.path)
        with self._lock:
            known = self._facts.get(grid.path.parent, {})
            first = next((facts for name, facts in known.items() if name.startswith(f"{grid.number}-")), _NO_FACTS)
        return {**facts, "prompt": first["prompt"]}


def _file(outputs: Outputs, day: str, name: str, copy: bool = False) -> Path:
    """Return the path of an image, or of its copy in the favourites."""
    return outputs.folder / FAVOURITES_FOLDER / f"{day}-{name}" if copy else outputs.folder / day / name
