"""Translate the system's errors about files into one line for the user."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..display.units import format_bytes
from ..errors import DiskFull, UserError, printable

DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def translate_os_errors(path: Path, bytes_needed: int | None = None, errnos: set[int] | None = None) -> Iterator[None]:
    """Translate an OSError about `path` into a UserError of one line.

    bytes_needed: bytes that were to be written; errnos: the error numbers to explain, others are raised unchanged.
    """
    try:
        yield
    except OSError as error:
        if errnos is not None and error.errno not in errnos:
            raise
        raise to_user_error(path, error, bytes_needed) from error


def to_user_error(path: Path, error: OSError, bytes_needed: int | None) -> UserError:
    if error.errno not in DISK_FULL_ERRNOS:
        return UserError(f"{printable(str(path), 200)}: {error.strerror or error}.")
    needed = f"need {format_bytes(bytes_needed)}, " if bytes_needed is not None else ""
    reason = {
        errno.ENOSPC: lambda: f"{format_bytes(free_bytes(path.parent))} free",
        errno.EDQUOT: lambda: "your quota is used up",
        errno.EFBIG: lambda: "more than one file may have here",
    }[error.errno]()
    return DiskFull(f"not enough space in {printable(str(path.parent), 200)}: {needed}{reason}. Nothing was changed.")


def free_bytes(folder: Path) -> int:
    """Return the bytes free on the disk that holds `folder`, which need not exist yet."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
