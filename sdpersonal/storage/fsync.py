"""Flush changes of files and folders to the disk."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError, printable
from .os_errors import translate_os_errors


def sync(path: Path) -> None:
    """Flush the file, so that what was appended so far survives a loss of power."""
    with translate_os_errors(path):
        handle = os.open(path, os.O_RDWR)
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
        raise UserError(f"{printable(str(folder), 200)} was changed, but may forget it: {error.strerror}.") from error


def sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(parent, name), os.O_RDWR)  # Windows flushes only writable handles
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(parent))
