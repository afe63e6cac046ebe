"""A folder held against other processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from ..errors import PersonalError, show
from .folders import make_folder
from .os_errors import told
from .reading import read_bytes

LOCK_NAME = ".lock"


@contextmanager
def lock(folder: Path, what: str = "", wait: float = 0.0) -> Iterator[None]:
    """Hold `folder` against other processes, waiting up to `wait` seconds. Raises PersonalError naming the holder.

    what: how the message calls the folder; by default its path. The kernel frees the lock when the process ends,
    however it ends; the lock file stays and means nothing by itself.
    """
    path = make_folder(folder) / LOCK_NAME
    holder = filelock.FileLock(path, timeout=wait, poll_interval=0.02)
    with told(path):
        try:
            holder.acquire()
        except (filelock.Timeout, RuntimeError) as error:  # RuntimeError: this very thread holds it
            problem = f"{what or show(str(folder))} is in use{_holder_note(path)}."
            raise PersonalError(problem, "Wait until it is done, or stop it.") from error
    try:
        _leave_note(path)
        yield
    finally:
        holder.release()


def _leave_note(path: Path) -> None:
    with suppress(OSError), open(path, "r+b") as file:  # only for the message: a full disk must not stop the work
        file.write(f"{os.getpid()} {time.strftime('%H:%M')}".ljust(24).encode())


def _holder_note(path: Path) -> str:
    with suppress(OSError, ValueError):
        process, since = read_bytes(path, 100).decode("ascii").split()
        return f" by process {int(process)} since {show(since, 5)}"
    return ""
