"""Replace files all or nothing, and append whole lines to files.

A temporary file is written beside its target, flushed, and renamed into place; a lock keeps `remove_leftovers` off it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from ..errors import UserError, printable
from .os_errors import translate_os_errors
from .reading import O_BINARY, read_bytes

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted and so needs no lock against `remove_leftovers`
    fcntl = None

TEMPORARY_SUFFIX = ".sdpersonal-tmp"
_MAX_APPENDED = 1 << 30  # bytes of a file that is appended to
_CHUNK = 1 << 24  # bytes: smaller parts are joined up to this size before they are written


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write the parts, one after the other, to `path`, replacing what is there all or nothing.

    Raises DiskFull, UserError.
    """
    path = Path(path)
    with translate_os_errors(path, sum(map(len, parts))):
        temporary, guard = create_temporary(path)
        try:
            handle = os.open(temporary, os.O_WRONLY | O_BINARY)
            try:
                for chunk in _join_small(parts):
                    _write(handle, chunk)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            release_guard(guard)
        sync_folder(path.parent)


def write_new_bytes(path: Path, data: bytes) -> bool:
    """Write a file all or nothing unless there is one at `path`; return whether it was written.

    Of several processes that try at once exactly one succeeds, also on a network disk. Raises DiskFull, UserError.
    """
    path = Path(path)
    with translate_os_errors(path, len(data)):
        temporary, guard = create_temporary(path)
        try:
            handle = os.open(temporary, os.O_WRONLY | O_BINARY)
            try:
                _write(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.link(temporary, path)  # fails where `path` exists, which a rename would replace
        except FileExistsError:
            return False
        finally:
            with suppress(OSError):
                os.unlink(temporary)
            release_guard(guard)
        sync_folder(path.parent)
    return True


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """Write strict JSON: a NaN raises ValueError rather than being written."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def append_line(path: Path, text: str) -> None:
    """Append one line; readers see it at once. A line cut by an earlier kill is ended first, so it spoils no other."""
    line = (text + "\n").encode()
    with translate_os_errors(path, len(line)):
        handle = _open_to_append(path, os.O_RDWR, 0o666)
        try:
            size = os.fstat(handle).st_size
            if size:
                os.lseek(handle, -1, os.SEEK_END)
                if os.read(handle, 1) != b"\n":
                    line = b"\n" + line
            _write(handle, line)
        finally:
            os.close(handle)


@contextmanager
def open_log(path: Path) -> Iterator[BinaryIO]:
    """Open a file that another program appends to; only its owner can read it."""
    with translate_os_errors(path), os.fdopen(_open_to_append(path, os.O_WRONLY, 0o600), "ab") as file:
        yield file


def _open_to_append(path: Path, access: int, mode: int) -> int:
    """Open a file to append to it, create it if it is missing, and return its handle.

    Raises UserError for a link and a pipe. A file that has another name too, as a hard link has, is first replaced by a
    copy of its own: what it holds under that name may be anything.
    """
    if os.path.islink(path):
        raise UserError(f"{printable(str(path), 200)} is a link to another file.", "Remove it.")
    handle = _open_regular(path, access, mode)
    if os.fstat(handle).st_nlink > 1:
        os.close(handle)
        write_bytes(path, read_bytes(path, _MAX_APPENDED))
        handle = _open_regular(path, access, mode)
    return handle


def _open_regular(path: Path, access: int, mode: int) -> int:
    # O_NONBLOCK: opening a named pipe that nobody reads from would otherwise wait for ever.
    flags = access | os.O_CREAT | os.O_APPEND | O_BINARY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags, mode)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{printable(str(path), 200)} is not a file.", "Remove it.")
    return handle


def _join_small(parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Join the parts into few chunks: a concept has thousands of small parts, or large ones best not copied."""
    pending: list[bytes | memoryview] = []
    size = 0
    for part in parts:
        if size + len(part) > _CHUNK and pending:
            yield b"".join(pending)
            pending, size = [], 0
        pending.append(part)
        size += len(part)
    yield pending[0] if len(pending) == 1 else b"".join(pending)


def _write(handle: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


# --- flushing to the disk ---------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Flush the file, so that what was appended so far survives a loss of power."""
    with translate_os_errors(path):
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0))
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there; the rename is journalled
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:  # it is too late to say that nothing was changed
        raise UserError(
            f"{printable(str(folder), 200)} was changed, which a power failure may undo: {error.strerror}."
        ) from error


def sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(parent, name), os.O_RDWR)  # Windows flushes only writable handles
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(parent))


# --- temporary files and folders --------------------------------------------------------------------------------------


def temporary_path(path: Path) -> Path:
    # The target's name is cut: with it the temporary name must still fit in 255 bytes.
    return path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # the umask takes its bits away


def create_temporary(path: Path, create: Callable[[Path], None] = _touch) -> tuple[Path, int | None]:
    """Create a temporary file (or folder) beside `path`; return it and the handle whose lock keeps cleaning off."""
    while True:
        temporary = temporary_path(path)
        create(temporary)
        if fcntl is None:
            return temporary, None
        with suppress(FileNotFoundError):  # removed between creation and lock: try again
            guard = os.open(temporary, os.O_RDONLY)
            with suppress(OSError):  # a network disk without locks: no cleaning can lock there either
                fcntl.flock(guard, fcntl.LOCK_EX)
            if _is_same_file(guard, temporary):
                return temporary, guard
            os.close(guard)


def release_guard(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files and folders that killed processes left directly in `folder`; return how many."""
    return _remove_unlocked(folder, lambda name: name.startswith(".") and name.endswith(TEMPORARY_SUFFIX))


def private_folder(prefix: str) -> Path:
    """Create a folder of this process in the system's folder for temporary files, readable by this user only.

    Those of the same prefix that killed processes of this user left are removed first; the caller removes its own.
    """
    parent = Path(tempfile.gettempdir())
    _remove_unlocked(parent, lambda name: name.startswith(prefix))
    with translate_os_errors(parent):
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            if _hold_lock(folder):
                return folder


_held_locks: list[int] = []  # handles that stay open until the process ends


def _hold_lock(folder: Path) -> bool:
    """Lock the folder while this process lives; return False if another process has removed it just before."""
    if fcntl is None:
        return True
    with suppress(FileNotFoundError):
        handle = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # a network disk without locks: no cleaning can lock there either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_same_file(handle, folder):
            _held_locks.append(handle)
            return True
        os.close(handle)
    return False


def _remove_unlocked(folder: Path, matches: Callable[[str], bool]) -> int:
    """Remove this user's files and folders directly in `folder` that no process has locked; return how many."""
    removed, entries = 0, list[os.DirEntry[str]]()
    with suppress(OSError):  # there is no such folder, or it cannot be read
        entries = list(os.scandir(folder))
    if fcntl is None:
        return 0
    for entry in entries:
        if not matches(entry.name) or entry.is_symlink():
            continue
        with suppress(OSError):  # it is gone meanwhile, or not ours to delete
            handle = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK)  # which does not wait for the writer of a pipe
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError while its writer lives
                if _is_same_file(handle, entry.path):
                    shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
                    removed += 1
            finally:
                os.close(handle)
    return removed


def _is_same_file(handle: int, path: str | Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False
