"""Find saved images by their ids, and list thousands of them quickly.

An id is DAY/STEM: "2026-11-28/00012-abcdef12". Facts of images that were listed before stay in memory: a name contains
digits of the content's hash, so they hold as long as the file is there.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from .. import storage
from ..errors import UserError
from .facts import Facts, load_facts, read_facts
from .folder import DAY_NAME, FAVOURITE_NAME, FAVOURITES_FOLDER, GRID_NAME, IMAGE_NAME, Outputs, list_names

T = TypeVar("T")
_MAX_FOLDERS = 4000  # whose names stay in memory
_SETTLED_NS = 2_000_000_000  # nanoseconds after a change during which the folder's time is not relied on
_MAX_FACTS = 100_000  # images whose facts stay in memory, of all folders
_ID = re.compile(rf"({DAY_NAME.pattern})/([0-9]{{5,9}}-[0-9a-z-]{{1,20}})")
_NO_FACTS: Facts = {"prompt": "", "negative": "", "facts": [], "width": 0, "height": 0}


@dataclass(frozen=True)
class SavedImage:
    """A saved image or grid. folder, file_name: where its file is, or its copy in the favourites if that is all there
    is; name: the file's name within its day."""

    day: str
    name: str
    folder: Path
    file_name: str
    is_favourite: bool

    @property
    def id(self) -> str:
        return f"{self.day}/{self.name[:-4]}"

    @property
    def path(self) -> Path:
        return self.folder / self.file_name

    @property
    def kind(self) -> Literal["image", "grid"]:
        return "image" if IMAGE_NAME.fullmatch(self.name) else "grid"

    @property
    def number(self) -> str:
        """The number within the day, as in the name."""
        return self.name.partition("-")[0]


@dataclass(frozen=True)
class _Names:
    """The names in a folder. changed_at: the folder's time of change when they were read, in nanoseconds."""

    changed_at: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Day:
    """The images of a day, the newest first. names, copies: of the day's folder and of the favourites, as they were."""

    names: tuple[str, ...]
    copies: frozenset[str]
    images: tuple[SavedImage, ...]


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
        # By folder, the least recently used first.
        self._facts: OrderedDict[Path, dict[str, Facts]] = OrderedDict()
        self._names: OrderedDict[Path, _Names] = OrderedDict()
        self._days: OrderedDict[Path, _Day] = OrderedDict()
        self._lock = threading.RLock()

    def images(self, outputs: Outputs, favourites_only: bool = False) -> list[SavedImage]:
        """List the images and grids of a folder, newest first; favourites also if only their copy is left."""
        copies: dict[str, set[str]] = {}
        for file_name in self._list_names(outputs.folder / FAVOURITES_FOLDER):
            copies.setdefault(file_name[:10], set()).add(file_name[11:])  # `FAVOURITE_NAME`: the day, then the name
        days = copies.keys() if favourites_only else {*outputs.days(), *copies}
        images: list[SavedImage] = []
        for day in sorted(days, reverse=True):
            images += self._day(outputs, day, frozenset(copies.get(day, ())))
        return [image for image in images if image.is_favourite] if favourites_only else images

    def _day(self, outputs: Outputs, day: str, copies: frozenset[str]) -> tuple[SavedImage, ...]:
        folder, favourites = outputs.folder / day, outputs.folder / FAVOURITES_FOLDER
        names = self._list_names(folder)
        with self._lock:
            known = self._days.get(folder)
        if known and known.names is names and known.copies == copies:
            return known.images
        in_folder = set(names)
        images = tuple(
            SavedImage(day, name, folder, name, name in copies)
            if name in in_folder
            else SavedImage(day, name, favourites, f"{day}-{name}", True)
            for name in sorted(in_folder | copies, key=lambda name: sort_key(day, name), reverse=True)
        )
        self._remember(self._days, folder, _Day(names, copies, images))
        return images

    def _list_names(self, folder: Path) -> tuple[str, ...]:
        """Return the names of the images in a folder; they are read again only if the folder has changed."""
        try:
            changed_at = folder.stat().st_mtime_ns
        except OSError:
            return ()
        with self._lock:
            known = self._names.get(folder)
        if known and known.changed_at == changed_at:
            return known.names
        names = tuple(name for name in list_names(folder) if _is_name(name))
        # A change just after the listing might leave the same time: clocks of file systems are coarse.
        is_settled = time.time_ns() - changed_at > _SETTLED_NS
        self._remember(self._names, folder, _Names(changed_at if is_settled else -1, names))
        return names

    def _remember(self, memory: OrderedDict[Path, T], folder: Path, value: T) -> None:
        with self._lock:
            memory[folder] = value
            memory.move_to_end(folder)
            if len(memory) > _MAX_FOLDERS:
                memory.popitem(last=False)

    def find(self, outputs: Outputs, image_id: object) -> SavedImage:
        """Return the image with this id. Raises UserError if there is none."""
        day, name = parse_id(image_id)
        favourites = outputs.folder / FAVOURITES_FOLDER
        is_favourite = (favourites / f"{day}-{name}").is_file()
        for folder, file_name in ((outputs.folder / day, name), (favourites, f"{day}-{name}")):
            if (folder / file_name).is_file() and storage.resolve_inside(outputs.folder, folder.name, file_name):
                return SavedImage(day, name, folder, file_name, is_favourite)
        raise UserError("This image is gone.", "It was deleted; bring it back from the trash if you need it.")

    def facts(self, images: Sequence[SavedImage]) -> list[Facts]:
        """Return the facts of images, in their order; a grid has the prompt of its first image."""
        by_folder: dict[Path, list[str]] = {}
        for image in images:
            if image.kind == "image":
                by_folder.setdefault(image.folder, []).append(image.file_name)
        loaded = {folder: self._folder_facts(folder, names) for folder, names in by_folder.items()}
        return [
            loaded[image.folder][image.file_name] if image.kind == "image" else self._grid_facts(image)
            for image in images
        ]

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
            known = self._facts.get(grid.folder, {})
            first = next((facts for name, facts in known.items() if name.startswith(f"{grid.number}-")), _NO_FACTS)
        return {**facts, "prompt": first["prompt"]}


def _is_name(name: str) -> bool:
    return bool(IMAGE_NAME.fullmatch(name) or FAVOURITE_NAME.fullmatch(name) or GRID_NAME.fullmatch(name))
