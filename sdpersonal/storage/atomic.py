"""Replace files all or nothing, and append whole lines to files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .fsync import sync_folder
from .os_errors import translate_os_errors
from .reading import O_BINARY
from .staging import create_temporary, release_guard

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


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """Write strict JSON: a NaN raises ValueError rather than being written."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def append_line(path: Path, text: str) -> None:
    """Append one line; readers see it at once. A line cut by an earlier kill is ended first, so it spoils no other."""
    line = (text + "\n").encode()
    with translate_os_errors(path, len(line)):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | O_BINARY, 0o666)
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
    with (
        translate_os_errors(path),
        os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | O_BINARY, 0o600), "ab") as file,
    ):
        yield file


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


def _write(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
