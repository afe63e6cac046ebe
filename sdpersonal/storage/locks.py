"""Lock a folder against other processes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from ..errors import UserError, printable
from .folders import make_folder
from .os_errors import translate_os_errors
from .reading import read_bytes

LOCK_NAME = ".lock"
_NOTE_BYTES = 24
_NOTE = re.compile(rb"([0-9]+ [0-9]{2}:[0-9]{2} *)?")  # the process that holds the lock, and since when
LOCK_TIMEOUT = 60.0  # seconds to wait for another process where its work is short


@contextmanager
def lock(folder: Path, label: str = "", timeout: float = 0.0) -> Iterator[None]:
    """Lock `folder` against other processes, waiting up to `timeout` seconds. Raises UserError naming the holder.

    label: how the message calls the folder; by default its path. The kernel frees the lock when the process ends,
    however it ends; the lock file stays and means nothing by itself.
    """
    release = hold_lock(folder, label, timeout)
    try:
        yield
    finally:
        release()


def hold_lock(folder: Path, label: str = "", timeout: float = 0.0) -> Callable[[], None]:
    """Lock `folder` as `lock` does, until the function returned is called, by any thread, or the process ends."""
    path = make_folder(folder) / LOCK_NAME
    file_lock = filelock.FileLock(path, timeout=timeout, poll_interval=0.02, thread_local=False)
    with translate_os_errors(path):
        try:
            file_lock.acquire()
        except (filelock.Timeout, RuntimeError) as error:  # RuntimeError: this very thread holds it
            problem = f"{label or printable(str(folder))} is in use{_describe_holder(path)}."
            raise UserError(problem, "Wait until it is done, or stop it.") from error
    _write_holder(path)
    return file_lock.release


def _write_holder(path: Path) -> None:
    with suppress(OSError), open(path, "r+b") as file:  # it serves only the message: a full disk must not stop the work
        # A hard link to another file, or one that was renamed, keeps what it holds.
        if os.fstat(file.fileno()).st_nlink > 1 or not _NOTE.fullmatch(file.read(_NOTE_BYTES + 1)):
            return
        file.seek(0)
        file.write(f"{os.getpid()} {time.strftime('%H:%M')}".ljust(_NOTE_BYTES).encode())


def _describe_holder(path: Path) -> str:
    with suppress(OSError, ValueError):
        process, since = read_bytes(path, 100).decode("ascii").split()
        return f" by process {int(process)} since {printable(since, 5)}"
    return ""
