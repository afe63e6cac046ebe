"""Read regular files only, at most as many bytes as the caller allows, and nothing outside a folder."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..display.units import format_bytes
from ..errors import UserError, printable
from .os_errors import to_user_error, translate_os_errors

O_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
_HEAD_BYTES = 4_200_000  # bytes that tell what a file is: the longest header of a foreign safetensors file


@contextmanager
def open_to_read(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading. Raises UserError; never waits on a pipe or device."""
    with translate_os_errors(path), os.fdopen(_open_regular(path)[0], "rb") as file:
        yield file


def read_bytes(path: Path, limit: int, check_head: Callable[[bytes, int], None] | None = None) -> bytes:
    """Return the content of a regular file of at most `limit` bytes, read once. Raises UserError.

    check_head: a function that gets the file's first megabytes and its size, and may raise before the rest is read.
    """
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if check_head:
            check_head(file.read(min(size, _HEAD_BYTES)), size)
            file.seek(0)
        if size > limit:
            raise _too_large_error(path, limit)
        try:
            data = file.read(size)  # not `limit`: as much memory would be allocated
            while more := file.read(65_536):  # the file has grown since, or the system does not know its size
                data += more
                if len(data) > limit:
                    raise _too_large_error(path, limit)
        except MemoryError:
            raise UserError(
                f"{printable(str(path), 200)} needs {format_bytes(size)} of memory, more than is free."
            ) from None
    return data


def read_head(path: Path, count: int) -> tuple[bytes, int]:
    """Return the first `count` bytes of a regular file, and its size; takes half of the time of `open_to_read`.

    Raises UserError.
    """
    try:
        handle, size = _open_regular(path)
        try:
            return os.read(handle, count), size
        finally:
            os.close(handle)
    except OSError as error:
        raise to_user_error(path, error, None) from error


def _open_regular(path: Path) -> tuple[int, int]:
    """Open a regular file; return its handle and its size."""
    # O_NONBLOCK: opening a named pipe that nobody writes to would otherwise wait for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | O_BINARY)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise UserError(f"{printable(str(path))} is not a file.")
    return handle, status.st_size


def _too_large_error(path: Path, limit: int) -> UserError:
    return UserError(f"{printable(str(path))} is larger than {format_bytes(limit)}, the limit for such a file.")


def sha256(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of the parts one after the other, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def resolve_inside(root: Path, *parts: str) -> Path:
    """Return `root/parts` with links resolved. Raises UserError where that is not under `root`."""
    top = Path(root).resolve()
    try:
        path = top.joinpath(*parts).resolve()
    except (ValueError, OSError, RuntimeError):  # a NUL, a name too long, a loop of links
        path = None
    if path is None or path == top or not path.is_relative_to(top):
        raise UserError(f"{printable('/'.join(parts))} is not inside {printable(str(root))}.")
    return path


def _refuse_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("a key appears twice in its JSON")
    return values


def _refuse_constant(word: str) -> None:
    raise ValueError(f"its JSON contains {word}")


def _parse_short_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a number in its JSON is too long")
    return int(digits)


_STRICT_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant, parse_int=_parse_short_int
)


def parse_strict_json(text: str) -> object:
    """Parse JSON without NaN, Infinity, duplicate keys or deep nesting. Raises ValueError, short enough to show."""
    try:
        return _STRICT_DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError("its JSON cannot be read") from error
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
