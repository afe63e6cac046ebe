"""Read and write files under a URI that all machines of a fleet reach: a folder, or a store such as s3://bucket/fleet.

Keys are relative paths with slashes. A file is written whole or not at all, and `write_new` lets exactly one of several
writers succeed. A local folder is written by `sdpersonal.storage`; anything else goes through fsspec.
"""

from __future__ import annotations

import json
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from .. import storage
from ..errors import UserError, printable
from ..training.run_dir import parse_object

MAX_BYTES = 8 << 30
_MAX_JSON_BYTES = 16 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between tries
T = TypeVar("T")


class StoreError(UserError):
    """The fleet's storage cannot be reached, or refuses; what is there is unharmed."""


class Store(ABC):
    """Files by key. Every method raises UserError: StoreError, or DiskFull."""

    uri: str

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """Return a file's content, None if there is none."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Write a file, in place of one that is there."""

    @abstractmethod
    def write_new(self, key: str, data: bytes) -> bool:
        """Write a file unless there is one; return whether it was written."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """List the names of the files and folders directly in a folder; [] if there is no such folder."""

    @abstractmethod
    def files(self, folder: str) -> list[str]:
        """List the keys of all files in a folder and in those below it."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove a file, or a folder with all in it, if it is there."""

    def read_json(self, key: str) -> dict[str, Any] | None:
        """Return a JSON object; None if there is none, or another content."""
        data = self.read(key)
        return parse_object(data) if data is not None and len(data) <= _MAX_JSON_BYTES else None

    def write_json(self, key: str, content: dict[str, Any]) -> None:
        self.write(key, _to_json(content))

    def write_new_json(self, key: str, content: dict[str, Any]) -> bool:
        return self.write_new(key, _to_json(content))


def _to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def open_store(uri: str) -> Store:
    """Open the storage at a URI or path. Raises UserError for one that cannot be used."""
    scheme, separator, path = uri.partition("://")
    if not separator:
        return LocalStore(Path(uri))
    return LocalStore(Path(path)) if scheme == "file" else FsspecStore(uri)


class LocalStore(Store):
    """A folder of this machine, or of a disk that all machines share."""

    def __init__(self, folder: Path):
        self.folder = folder.expanduser().absolute()
        self.uri = str(self.folder)

    def _path(self, key: str) -> Path:
        return self.folder / key

    def read(self, key: str) -> bytes | None:
        path = self._path(key)
        if not os.path.lexists(path):
            return None
        try:
            return storage.read_bytes(path, MAX_BYTES)
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # it was removed just now
                return None
            raise

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        storage.make_folder(path.parent)
        storage.write_bytes(path, data)

    def write_new(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        storage.make_folder(path.parent)
        return storage.write_new_bytes(path, data)

    def names(self, folder: str) -> list[str]:
        with _name_in_errors(self.uri), suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(self._path(folder)) if not name.startswith("."))
        return []

    def files(self, folder: str) -> list[str]:
        top = self._path(folder)
        paths = (Path(parent) / name for parent, _, names in os.walk(top) for name in names if name[0] != ".")
        return sorted(path.relative_to(self.folder).as_posix() for path in paths)

    def remove(self, key: str) -> None:
        with _name_in_errors(self.uri):
            try:
                status = os.lstat(self._path(key))
            except FileNotFoundError:
                return
            if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                storage.remove(self._path(key))


class FsspecStore(Store):
    """An object store or network file system that fsspec knows. `write_new` is as strict as its file system's own."""

    def __init__(self, uri: str):
        scheme, _, path = uri.partition("://")
        self.uri = f"{scheme}://{path.rstrip('/')}"
        try:
            import fsspec  # type: ignore[import-untyped]  # the package has no type information

            self._system, self._root = fsspec.url_to_fs(self.uri, use_listings_cache=False)
        except ImportError as error:
            raise UserError(
                f"{printable(self.uri)} needs another package: {printable(str(error), 200)}", "Install it everywhere."
            ) from None
        except Exception as error:  # of any package that fsspec loads
            raise UserError(f"{printable(self.uri)} cannot be used as storage: {_short(error)}.") from None

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    def read(self, key: str) -> bytes | None:
        with _name_in_errors(self.uri):
            try:
                return self._system.cat_file(self._path(key))
            except FileNotFoundError:
                return None

    def write(self, key: str, data: bytes) -> None:
        with _name_in_errors(self.uri):
            self._make_parent(key)
            self._system.pipe_file(self._path(key), data)

    def write_new(self, key: str, data: bytes) -> bool:
        with _name_in_errors(self.uri):
            self._make_parent(key)
            try:
                self._system.pipe_file(self._path(key), data, mode="create")
            except FileExistsError:
                return False
        return True

    def names(self, folder: str) -> list[str]:
        with _name_in_errors(self.uri):
            self._system.invalidate_cache()
            try:
                paths = self._system.ls(self._path(folder), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted({str(path).rstrip("/").rpartition("/")[2] for path in paths} - {""})

    def files(self, folder: str) -> list[str]:
        with _name_in_errors(self.uri):
            self._system.invalidate_cache()
            try:
                paths = self._system.find(self._path(folder))
            except FileNotFoundError:
                return []
        prefix = self._path("")
        return sorted(str(path).removeprefix(prefix) for path in paths)

    def remove(self, key: str) -> None:
        with _name_in_errors(self.uri), suppress(FileNotFoundError):
            self._system.rm(self._path(key), recursive=True)

    def _make_parent(self, key: str) -> None:
        self._system.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)  # object stores do nothing


@contextmanager
def _name_in_errors(uri: str) -> Iterator[None]:
    """Translate what a file system raises into a StoreError of one line."""
    try:
        yield
    except (UserError, FileNotFoundError, FileExistsError, NotADirectoryError):
        raise
    except Exception as error:  # of any package that fsspec loads
        raise StoreError(f"The storage {printable(uri, 200)} failed: {_short(error)}.") from error


def _short(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(text.splitlines()[0].rstrip("."), 200)


def keep_trying(action: Callable[[], T], seconds: float, pause: Callable[[float], object] = time.sleep) -> T:
    """Return what the action returns, trying again for that many seconds while the storage fails or is full.

    pause: called with the seconds to wait between two tries, which double from 1 to 60.
    """
    deadline, wait = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        try:
            return action()
        except UserError:
            if time.monotonic() + wait > deadline:
                raise
        pause(wait)
        wait = min(2 * wait, _LONGEST_PAUSE)
