"""Where pictures are kept:

    outputs/2026-11-23/00001-abcdef12.png    a number of that day, and the first digits of its bytes' sha256
    outputs/favourites/2026-11-23-00001-abcdef12.png    a copy
    outputs/index.html                       a page of all (`write_page`)

A name never holds a word of a prompt. Nothing is written over; many processes may save at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path

from .. import storage
from ..config.text_checks import check_path
from ..errors import PersonalError
from ..prompts import show

DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
PICTURE = re.compile(r"([0-9]{5,9})-[0-9a-f]{8}\.png")
FAVOURITE = re.compile(rf"({DAY.pattern})-({PICTURE.pattern})")
FAVOURITES = "favourites"
MAX_PICTURE = 200_000_000  # bytes
_COUNT = ".count"  # file in a day's folder: its last number. Without it the folder is listed once
_PATIENCE = 60.0  # seconds to wait for other processes that are saving


class Outputs:
    """The pictures in `folder`, which need not exist yet. Every method raises PersonalError, or NoRoom if it writes."""

    def __init__(self, folder: str | os.PathLike, today: Callable[[], date] = date.today):
        check_path(folder, "out")
        self.folder = Path(folder)
        self._today = today

    def save(self, data: bytes) -> Path:
        """Keep a PNG's bytes; returns where."""
        day = storage.make_folder(self.folder / self._today().isoformat())
        mark = storage.sha256(data)[:8]
        with storage.lock(day, wait=_PATIENCE):
            number = 1 + _last(day)
            while os.path.lexists(path := day / f"{number:05d}-{mark}.png"):
                number += 1
            storage.write_text(day / _COUNT, str(number))  # first: a crash then leaves a gap, not a number given twice
            storage.write_bytes(path, data)
        return path

    def favourite(self, picture: str | os.PathLike) -> Path:
        """Copy a picture of this folder to its favourites; returns the copy, which stays if the picture goes."""
        place = self._favourite_of(picture)
        if not place.exists():
            data = storage.read_bytes(Path(picture), MAX_PICTURE)
            storage.make_folder(place.parent)
            storage.write_bytes(place, data)
        return place

    def unfavourite(self, picture: str | os.PathLike) -> None:
        """Remove the copy, if there is one; the picture stays."""
        place = self._favourite_of(picture)
        if os.path.lexists(place):
            storage.remove(place)

    def days(self) -> list[str]:
        """Days that have a folder, newest first."""
        found = (each for each in _scan(self.folder) if DAY.fullmatch(each.name))
        return sorted((each.name for each in found if each.is_dir(follow_symlinks=False)), reverse=True)

    def pictures(self, day: str) -> list[str]:
        """File names of a day's pictures, newest first."""
        return sorted((each.name for each in _scan(self.folder / day) if PICTURE.fullmatch(each.name)), key=_number)[
            ::-1
        ]

    def favourites(self) -> list[str]:
        """File names in the folder of favourites, newest first."""
        found = (FAVOURITE.fullmatch(each.name) for each in _scan(self.folder / FAVOURITES))
        return [each[0] for each in sorted(filter(None, found), key=lambda each: (each[1], int(each[3])), reverse=True)]

    def _favourite_of(self, picture: str | os.PathLike) -> Path:
        """Where the copy of a picture of this folder is; a favourite's own name leads to itself."""
        path = Path(os.path.abspath(picture))
        top = Path(os.path.abspath(self.folder))
        if path.parent == top / FAVOURITES and FAVOURITE.fullmatch(path.name):
            return self.folder / FAVOURITES / path.name
        if path.parent.parent == top and DAY.fullmatch(path.parent.name) and PICTURE.fullmatch(path.name):
            return self.folder / FAVOURITES / f"{path.parent.name}-{path.name}"
        raise PersonalError(
            f"{show(str(picture), 200)} is not a picture of {show(str(self.folder), 200)}.",
            "Give one of its pictures, or the folder with --out.",
        )


def _number(name: str) -> tuple[int, str]:
    return int(name.partition("-")[0]), name


def _last(day: Path) -> int:
    """The last number given; the folder is listed only where nobody has counted."""
    with suppress(PersonalError, UnicodeDecodeError):
        counted = storage.read_bytes(day / _COUNT, 20).decode("ascii")
        if re.fullmatch(r"[0-9]{1,8}", counted):
            return int(counted)
    return max((_number(each.name)[0] for each in _scan(day) if PICTURE.fullmatch(each.name)), default=0)


def _scan(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise PersonalError(f"{show(str(folder), 200)}: {error.strerror}.") from error
