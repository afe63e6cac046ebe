"""Create folders all or nothing; rename and remove files and folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError, printable
from .atomic import create_temporary, release_guard, sync_folder, sync_tree, temporary_path
from .os_errors import DISK_FULL_ERRNOS, translate_os_errors


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create a folder at `path` all or nothing. Fill the one yielded; it is renamed if the block ends well, else gone.

    Raises DiskFull where the block or the renaming meets a full disk, UserError where `path` exists.
    """
    path = Path(path)
    make_folder(path.parent)
    with translate_os_errors(path):
        if os.path.lexists(path):
            raise UserError(f"{printable(str(path))} already exists.")
        staged, guard = create_temporary(path, os.mkdir)
    try:
        with translate_os_errors(path, errnos=DISK_FULL_ERRNOS):  # other errors in the block concern other files
            yield staged
        with translate_os_errors(path):
            sync_tree(staged)
            os.rename(staged, path)
            sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        release_guard(guard)


def make_folder(path: Path) -> Path:
    """Create the folder and those above it, durably, unless they exist."""
    path = Path(path)
    with translate_os_errors(path):
        if path.is_dir():
            return path
        if os.path.lexists(path) and not path.is_dir():  # checked again: another process may have made it in between
            raise UserError(f"{printable(str(path))} is a file, not a folder.")
        make_folder(path.parent)
        with suppress(FileExistsError):  # made by another process just now
            os.mkdir(path)
        sync_folder(path.parent)
    return path


def check_folder(path: Path) -> None:
    """Raise UserError if no folder can be created at `path`, or nothing written there. Creates nothing."""
    with translate_os_errors(path):
        existing = Path(path).absolute()
        while not os.path.lexists(existing):
            existing = existing.parent
        if not existing.is_dir():
            raise UserError(f"{printable(str(existing))} is a file, not a folder.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{printable(str(existing))}: Permission denied.", "Give a folder that you may write to.")


def rename(old: Path, new: Path) -> None:
    """Rename a file or folder on the same disk. Raises UserError where `new` exists."""
    old, new = Path(old), Path(new)
    with translate_os_errors(old):
        if os.path.lexists(new):
            raise UserError(f"{printable(str(new))} already exists.")
        os.rename(old, new)
        for folder in {old.parent, new.parent}:
            sync_folder(folder)


def remove(path: Path) -> None:
    """Delete a file, a folder with all in it, or a link (never what it points to)."""
    path = Path(path)
    with translate_os_errors(path):
        if path.is_dir() and not path.is_symlink():
            # It is renamed in one step first: a crash during the deletion must not leave a half-empty folder.
            doomed = temporary_path(path)
            os.rename(path, doomed)
            sync_folder(path.parent)
            while os.path.lexists(doomed):
                with suppress(FileNotFoundError):  # something in it was just deleted by another thread or process
                    shutil.rmtree(doomed)
        else:
            os.unlink(path)
        sync_folder(path.parent)


def remove_empty_folder(path: Path) -> None:
    """Delete the folder if it is empty; else do nothing."""
    with suppress(OSError):
        os.rmdir(path)
        sync_folder(Path(path).parent)
