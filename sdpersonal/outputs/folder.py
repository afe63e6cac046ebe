"""The folder where images are saved:

    outputs/2026-11-23/00001-abcdef12.png    a number within the day, and the first digits of the file's sha256
    outputs/2026-11-23/00001-sheet.png       a grid of images, numbered like its first one
    outputs/favourites/2026-11-23-00001-abcdef12.png    a copy
    outputs/.deleted/20261123T101500Z-01234567/...      deleted images (`Trash`)
    outputs/index.html                       a page of all (`write_page`)

A file name never contains a word of a prompt. Nothing is overwritten; several processes may save at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

from .. import storage
from ..config.text_checks import check_path
from ..errors import UserError, printable

DAY_NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
IMAGE_NAME = re.compile(r"([0-9]{5,9})-[0-9a-f]{8}\.png")
FAVOURITE_NAME = re.compile(rf"({DAY_NAME.pattern})-({IMAGE_NAME.pattern})")
GRID_NAME = re.compile(r"([0-9]{5,9})-(?:sheet(?:-[0-9]{1,3})?|variations)\.png")
FAVOURITES_FOLDER = "favourites"
MAX_IMAGE_BYTES = 200_000_000  # bytes
_COUNTER_NAME = ".count"  # file in a day's folder with the last number; without it the folder is listed once


class Outputs:
    """The images in `folder`, which need not exist yet. Every method raises UserError, or DiskFull if it writes."""

    def __init__(self, folder: str | os.PathLike, today: Callable[[], date] = date.today):
        check_path(folder, "out")
        self.folder = Path(folder)
        self._today = today

    def save(self, data: bytes) -> Path:
        """Save a PNG's bytes and return its path."""
        day = storage.make_folder(self.folder / self._today().isoformat())
        mark = content_mark(data)
        with storage.lock(day, timeout=storage.LOCK_TIMEOUT):
            number = 1 + _last_number(day)
            while os.path.lexists(path := day / f"{number:05d}-{mark}.png"):
                number += 1
            storage.write_text(
                day / _COUNTER_NAME, str(number)
            )  # first: a crash then leaves a gap, not a number given twice
            storage.write_bytes(path, data)
        return path

    def add_favourite(self, path: str | os.PathLike) -> Path:
        """Copy an image of this folder to its favourites. Returns the copy, which stays if the image is deleted."""
        place = self._favourite_path(path)
        if not place.exists():
            data = storage.read_bytes(Path(path), MAX_IMAGE_BYTES)
            storage.make_folder(place.parent)
            storage.write_bytes(place, data)
        return place

    def remove_favourite(self, path: str | os.PathLike) -> None:
        """Remove the favourite's copy, if there is one; the image stays."""
        place = self._favourite_path(path)
        if os.path.lexists(place):
            storage.remove(place)

    def days(self) -> list[str]:
        """Return the days that have a folder, newest first."""
        day_entries = (entry for entry in _list_entries(self.folder) if DAY_NAME.fullmatch(entry.name))
        return sorted((entry.name for entry in day_entries if entry.is_dir(follow_symlinks=False)), reverse=True)

    def images(self, day: str) -> list[str]:
        """Return the file names of a day's images, newest first."""
        return sorted(
            (entry.name for entry in _list_entries(self.folder / day) if IMAGE_NAME.fullmatch(entry.name)), key=_number
        )[::-1]

    def marked(self, mark: str) -> Iterator[Path]:
        """Yield the images whose content has this mark, the first digits of its sha256, newest first."""
        ending = f"-{mark}.png"
        for day in self.days():
            yield from (self.folder / day / name for name in self.images(day) if name.endswith(ending))

    def favourites(self) -> list[str]:
        """Return the file names of the favourites, newest first."""
        matches = (FAVOURITE_NAME.fullmatch(entry.name) for entry in _list_entries(self.folder / FAVOURITES_FOLDER))
        return [m[0] for m in sorted(filter(None, matches), key=lambda m: (m[1], int(m[3])), reverse=True)]

    def _favourite_path(self, image: str | os.PathLike) -> Path:
        """Return the path of an image's copy in favourites; for a favourite, its own path."""
        path = Path(os.path.abspath(image))
        top = Path(os.path.abspath(self.folder))
        if path.parent == top / FAVOURITES_FOLDER and FAVOURITE_NAME.fullmatch(path.name):
            return self.folder / FAVOURITES_FOLDER / path.name
        if path.parent.parent == top and DAY_NAME.fullmatch(path.parent.name) and IMAGE_NAME.fullmatch(path.name):
            return self.folder / FAVOURITES_FOLDER / f"{path.parent.name}-{path.name}"
        raise UserError(
            f"{printable(str(image), 200)} is not an image of {printable(str(self.folder), 200)}.",
            "Give one of its images, or the folder with --out.",
        )


def content_mark(data: bytes) -> str:
    """Return the part of an image's file name that tells its content."""
    return storage.sha256(data)[:8]


def _number(name: str) -> tuple[int, str]:
    return int(name.partition("-")[0]), name


def _last_number(day: Path) -> int:
    """Return the last number used; the folder is listed only if the counter file is missing."""
    with suppress(UserError, UnicodeDecodeError):
        counted = storage.read_bytes(day / _COUNTER_NAME, 20).decode("ascii")
        if re.fullmatch(r"[0-9]{1,8}", counted):
            return int(counted)
    return max((_number(entry.name)[0] for entry in _list_entries(day) if IMAGE_NAME.fullmatch(entry.name)), default=0)


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder, none if it does not exist. Raises UserError."""
    return [entry.name for entry in _list_entries(folder)]


def _list_entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{printable(str(folder), 200)}: {error.strerror}.") from error
