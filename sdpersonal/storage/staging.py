"""Name, create, lock and clean up temporary files and folders."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted and so needs no lock against `remove_leftovers`
    fcntl = None

TEMPORARY_SUFFIX = ".sdpersonal-tmp"


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
    removed = 0
    if fcntl is None or not os.path.isdir(folder):
        return 0
    for entry in os.scandir(folder):
        if not (entry.name.startswith(".") and entry.name.endswith(TEMPORARY_SUFFIX)) or entry.is_symlink():
            continue
        with suppress(OSError):  # it is gone meanwhile, or not ours to delete
            handle = os.open(entry.path, os.O_RDONLY)
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
