"""Keep the trash of an outputs folder: a deletion is a folder with the images' files, to be restored for 30 days.

    outputs/.deleted/20261123T101500Z-01234567/2026-11-23/00001-abcdef12.png
    outputs/.deleted/20261123T101500Z-01234567/favourites/2026-11-23-00001-abcdef12.png    if it was a favourite

Deleting and restoring rename one file after the other on one disk. After a crash half-way each file is in one of the
two places, and deleting or restoring again moves the others.

Each deletion purges older ones, unless the clock may be wrong (see `storage.trash_times`). A deletion that is dated
ahead of the clock counts from the first deletion that finds it so, unless the clock stands before images were saved.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from .. import storage
from ..errors import UserError, printable
from ..storage.trash_times import RETENTION, deletion_time, is_ahead, is_clock_right, new_deletion_name
from .facts import CACHE_NAME
from .folder import DAY_NAME, FAVOURITE_NAME, FAVOURITES_FOLDER, GRID_NAME, IMAGE_NAME, Outputs

TRASH_FOLDER = ".deleted"

log = logging.getLogger(__name__)


class OutputsTrash:
    """The deleted images of one outputs folder. Every method raises UserError."""

    def __init__(self, outputs: Outputs):
        self.outputs = outputs
        self.folder = outputs.folder / TRASH_FOLDER

    def delete(self, images: Sequence[tuple[str, str]]) -> str:
        """Move images, each a day and a file name, and their copies in the favourites to the trash; return the
        deletion's name. Those that are gone already are passed over; raises UserError if all are. Purge older
        deletions."""
        name = new_deletion_name(datetime.now(UTC))
        storage.resolve_inside(self.outputs.folder, TRASH_FOLDER)  # a link must not take the files elsewhere
        with self._lock():
            last_used = self._last_used()
            files = [file for day, image in images for file in self._files_of(day, image)]
            if not files:
                raise UserError("These images are gone already.")
            for file in files:
                _move(self.outputs.folder / file, self.folder / name / file)
            try:
                self._purge(last_used, name)
            except UserError as error:  # the images are deleted all the same
                log.warning("The trash of %s cannot be purged: %s", self.outputs.folder, error)
        return name

    def restore(self, name: str) -> int:
        """Move a deletion's files back; return how many images came back. Files whose place is taken stay in the
        trash."""
        with self._lock():
            folder, count = self._deletion(name), 0
            for file in _files_in(folder):
                if not os.path.lexists(self.outputs.folder / file):
                    _move(folder / file, self.outputs.folder / file)
                    count += file.parts[0] != FAVOURITES_FOLDER
            for subfolder in [*(folder / part.parts[0] for part in _files_in(folder)), *_folders(folder), folder]:
                storage.remove_empty_folder(subfolder)
        return count

    def _purge(self, last_used: datetime, newest: str) -> None:
        """Delete for good what was deleted `RETENTION` ago. last_used: before the deletion `newest`."""
        now = datetime.now(UTC)
        storage.remove_leftovers(self.folder)
        may_purge = is_clock_right(self.folder, now, last_used)
        for name, deleted_at in self._deletions():
            if may_purge and now - deleted_at >= RETENTION:
                self._forget_facts(name)
                storage.remove(self.folder / name)
            elif name != newest and is_ahead(deleted_at, now) and self._last_saved() <= now:
                storage.rename(self.folder / name, self.folder / new_deletion_name(now))

    def _lock(self):
        return storage.lock(self.outputs.folder, "The outputs folder", storage.LOCK_TIMEOUT)

    def _files_of(self, day: str, name: str) -> Iterator[Path]:
        """Yield the files of an image that exist, relative to the outputs folder."""
        if not (DAY_NAME.fullmatch(day) and (IMAGE_NAME.fullmatch(name) or GRID_NAME.fullmatch(name))):
            raise UserError("That is not an image of the outputs folder.")
        page = Path(name).with_suffix(".html").name  # of a grid
        for file in (Path(day, name), Path(day, page), Path(FAVOURITES_FOLDER, f"{day}-{name}")):
            if (self.outputs.folder / file).is_file():
                yield file

    def _deletion(self, name: str) -> Path:
        if not deletion_time(name) or not (folder := self.folder / name).is_dir():
            raise UserError(f"{printable(name, 40)} is not in the trash any more.")
        return storage.resolve_inside(self.outputs.folder, TRASH_FOLDER, folder.name)

    def _forget_facts(self, name: str) -> None:
        """Remove the facts of a deletion's images, prompts among them, from the caches; others are read again."""
        for file in {Path(part.parts[0], CACHE_NAME) for part in _files_in(self.folder / name)}:
            if (self.outputs.folder / file).is_file():
                storage.remove(self.outputs.folder / file)

    def _deletions(self) -> list[tuple[str, datetime]]:
        """Return the names and times of all deletions."""
        return [(folder.name, time) for folder in _folders(self.folder) if (time := deletion_time(folder.name))]

    def _last_used(self) -> datetime:
        """Return when images were saved or deleted last, as far as names of folders tell."""
        return max([self._last_saved(), *(time for _, time in self._deletions())])

    def _last_saved(self) -> datetime:
        """Return the newest day with images; the earliest time if there is none."""
        return max(filter(None, map(_day_time, self.outputs.days())), default=datetime.min.replace(tzinfo=UTC))


def _move(source: Path, target: Path) -> None:
    storage.make_folder(target.parent)
    storage.rename(source, target)


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a deletion that are images or grids, relative to its folder."""
    files = []
    for subfolder in _folders(folder):
        is_favourites = subfolder.name == FAVOURITES_FOLDER
        if not (is_favourites or DAY_NAME.fullmatch(subfolder.name)):
            continue
        with os.scandir(subfolder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        files += [Path(subfolder.name, name) for name in names if _is_image_file(name, is_favourites)]
    return files


def _is_image_file(name: str, is_favourite: bool) -> bool:
    if is_favourite:
        return bool(FAVOURITE_NAME.fullmatch(name))
    png = name.removesuffix(".html") + ".png" if name.endswith(".html") else name
    return bool(GRID_NAME.fullmatch(png) or IMAGE_NAME.fullmatch(name))


def _folders(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def _day_time(day: str) -> datetime | None:
    """Return when a day begins; None for an impossible day."""
    with suppress(ValueError):
        return datetime.fromisoformat(day).replace(tzinfo=UTC)
    return None
