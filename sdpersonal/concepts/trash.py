"""Keep the trash of a library: each deletion is a small library in `<library>/.trash/<time>-<number>/`.

Deleting and restoring rename whole files on one disk, so nothing is copied and no byte of them changes.

The clock may be wrong (see `storage.trash_times`). A deletion that is dated ahead of the clock counts from the first
deletion that finds it so, unless the clock stands before concepts were written, and so was set back too far.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from .. import storage
from ..errors import UserError, printable
from ..prompts import Token
from ..storage.trash_times import RETENTION, deletion_time, is_ahead, is_clock_right, new_deletion_name
from .library import Entry, Library

TRASH_FOLDER = ".trash"


@dataclass(frozen=True)
class Deletion:
    """Concepts that were deleted together. name: identifies it for `restore`; deleted_at: UTC."""

    name: str
    deleted_at: datetime
    entries: tuple[Entry, ...]

    @property
    def tokens(self) -> list[Token]:
        return [entry.token for entry in self.entries]


class Trash:
    """The trash of one library. Every method raises UserError."""

    def __init__(self, library: Library):
        self.library = library
        self.folder = library.folder / TRASH_FOLDER

    def deletions(self) -> list[Deletion]:
        """List the deletions that can be restored, newest first."""
        return [deletion for deletion in self._readable() if deletion.entries]

    def delete(self, token: str | Token, all_versions: bool = False) -> Deletion:
        """Delete like `Library.remove`, restorable for `RETENTION`; purge older deletions."""
        name = new_deletion_name(datetime.now(UTC))
        storage.resolve_inside(self.library.folder, TRASH_FOLDER)  # a link must not take the file elsewhere
        last_used = self._last_used()
        self.library.remove(token, all_versions, move_to=Library(self.folder / name))
        self._purge(last_used, name)
        return self._read(name)

    def restore(self, name: str) -> list[Token]:
        """Restore a deletion's unchanged files. Raises UserError, moving nothing, if a token is taken."""
        with self.library.write_lock():
            deletion = self._read(name)
            for token in deletion.tokens:
                if token in self.library.versions(token):
                    message = f"{token} cannot be restored: another concept has its name now."
                    raise UserError(message, "Rename or delete that one first.")
            for entry in deletion.entries:
                self.library.move_in(entry.path, entry.token)
            self._discard(deletion)
        return deletion.tokens

    def find_deletion(self, token: str | Token) -> Deletion:
        """Return the newest deletion that contains `token`."""
        token = Token.of(token)
        for deletion in self.deletions():
            if any(token.matches(deleted) for deleted in deletion.tokens):
                return deletion
        raise UserError(f"No {token} was deleted here in the last {RETENTION.days} days.")

    def empty(self) -> int:
        """Delete everything permanently; return the number of concepts."""
        with self.library.write_lock():
            storage.remove_leftovers(self.folder)
            deletions = list(self._readable())
            for deletion in deletions:
                self._discard(deletion)
            return sum(len(deletion.entries) for deletion in deletions)

    def _purge(self, last_used: datetime, newest: str) -> None:
        """Delete permanently what was deleted `RETENTION` ago. last_used: before the deletion `newest`."""
        now = datetime.now(UTC)
        with self.library.write_lock():
            storage.remove_leftovers(self.folder)
            may_purge = is_clock_right(self.folder, now, last_used)
            for deletion in self._readable():
                if not deletion.entries or (may_purge and now - deletion.deleted_at >= RETENTION):
                    self._discard(deletion)
                elif (
                    deletion.name != newest
                    and is_ahead(deletion.deleted_at, now)
                    and _last_written(self.library) <= now
                ):
                    storage.rename(self.folder / deletion.name, self.folder / new_deletion_name(now))

    def _last_used(self) -> datetime:
        """Return the time of the newest deletion, or of the newest concept, if that is newer."""
        deleted = [time for name in self._names() if (time := deletion_time(name))]
        return max([*deleted, _last_written(self.library)])

    def _readable(self) -> Iterator[Deletion]:
        """Yield the deletions whose folders can be read, newest first."""
        for name in reversed(self._names()):
            with suppress(UserError):
                yield self._read(name)

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.folder) as entries:
                return sorted(
                    entry.name for entry in entries if deletion_time(entry.name) and entry.is_dir(follow_symlinks=False)
                )
        except OSError:  # there is none, or it cannot be read
            return []

    def _read(self, name: str) -> Deletion:
        deleted_at = deletion_time(name)
        if not deleted_at or not (folder := storage.resolve_inside(self.library.folder, TRASH_FOLDER, name)).is_dir():
            raise UserError(f"{printable(str(name))} is not in the trash any more.")
        return Deletion(name, deleted_at, tuple(Library(folder).entries()))

    def _discard(self, deletion: Deletion) -> None:
        storage.remove(self.folder / deletion.name)


def _last_written(library: Library) -> datetime:
    """Return when the newest file of the library was written, not later than can be expressed."""
    times = [0.0]
    for path in library.folder.glob("*/*.safetensors"):
        with suppress(OSError):
            times.append(path.lstat().st_mtime)
    with suppress(OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(max(times), UTC)
    return datetime.max.replace(tzinfo=UTC)
