"""The trash of a library: each deletion is a small library in `<library>/.trash/<time>-<number>/`.

Deleting and restoring rename whole files on one disk, so nothing is copied and no byte of them changes.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from .. import storage
from ..errors import UserError, printable
from ..prompts import Token
from .library import Entry, Library

TRASH_FOLDER = ".trash"
RETENTION = timedelta(days=30)

_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_DELETION_NAME = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]{8}")


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
        name = f"{datetime.now(UTC).strftime(_TIME_FORMAT)}-{secrets.token_hex(4)}"
        storage.resolve_inside(self.library.folder, TRASH_FOLDER)  # a link must not take the file elsewhere
        self.library.remove(token, all_versions, move_to=Library(self.folder / name))
        self.empty(RETENTION)
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

    def empty(self, older_than: timedelta = timedelta(0)) -> int:
        """Delete permanently what was deleted at least `older_than` ago; return the number of concepts."""
        deleted, now = 0, datetime.now(UTC)
        with self.library.write_lock():
            storage.remove_leftovers(self.folder)
            for deletion in self._readable():
                if now - deletion.deleted_at >= older_than or not deletion.entries:
                    self._discard(deletion)
                    deleted += len(deletion.entries)
        return deleted

    def _readable(self) -> Iterator[Deletion]:
        """Yield the deletions whose folders can be read, newest first."""
        for name in reversed(self._names()):
            with suppress(UserError):
                yield self._read(name)

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.folder) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if _deletion_time(entry.name) and entry.is_dir(follow_symlinks=False)
                )
        except OSError:  # there is none, or it cannot be read
            return []

    def _read(self, name: str) -> Deletion:
        deleted_at = _deletion_time(name)
        if not deleted_at or not (folder := storage.resolve_inside(self.library.folder, TRASH_FOLDER, name)).is_dir():
            raise UserError(f"{printable(str(name))} is not in the trash any more.")
        return Deletion(name, deleted_at, tuple(Library(folder).entries()))

    def _discard(self, deletion: Deletion) -> None:
        storage.remove(self.folder / deletion.name)


def _deletion_time(name: object) -> datetime | None:
    """Return the time in a deletion's name; None for any other name."""
    with suppress(ValueError):
        if isinstance(name, str) and (match := _DELETION_NAME.fullmatch(name)):
            return datetime.strptime(match[1], _TIME_FORMAT).replace(tzinfo=UTC)
    return None
