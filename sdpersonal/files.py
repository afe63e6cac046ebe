"""Files that are whole or not there: the only module that creates, renames or deletes.

What is written lands in a temporary file beside its target, is flushed to the disk, and is then renamed into place, so
that a crash at any moment leaves the old content or the new (the order is SQLite's: data before the name, the folder
after it). A process killed half-way leaves a temporary file; `sweep` removes those that no living process holds.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import filelock

from .errors import NoRoom, PersonalError, show

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted and so needs no lock against sweeping
    fcntl = None

_LEFTOVER = ".sdpersonal-tmp"
LOCK_NAME = ".lock"
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
_HEAD = 4_200_000  # bytes that tell what a file is: the longest header of a stranger's safetensors file
_CHUNK = 1 << 24  # bytes written at once, where there are so many
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# --- reading --------------------------------------------------------------------------------------------------------


@contextmanager
def open_to_read(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open. Raises PersonalError; never waits on a pipe or device."""
    with _told(path), os.fdopen(_open_regular(path)[0], "rb") as file:
        yield file


def read_bytes(path: Path, limit: int, look: Callable[[bytes, int], None] | None = None) -> bytes:
    """The content of a regular file of at most `limit` bytes, read once. Raises PersonalError.

    look: is given the file's first megabytes and its size, and may raise before the rest is read.
    """
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if look:
            look(file.read(min(size, _HEAD)), size)
            file.seek(0)
        if size > limit:
            raise _too_large(path, limit)
        try:
            data = file.read(size)  # not `limit`: so much memory would be asked for
            while more := file.read(65_536):  # it has grown since, or the system does not know its size
                data += more
                if len(data) > limit:
                    raise _too_large(path, limit)
        except MemoryError:
            raise PersonalError(
                f"{show(str(path), 200)} needs {_megabytes(size)} of memory, more than is free."
            ) from None
    return data


def read_head(path: Path, count: int) -> tuple[bytes, int]:
    """The first `count` bytes of a regular file, and its size; in half of the time that `open_to_read` takes.

    Raises PersonalError.
    """
    try:
        handle, size = _open_regular(path)
        try:
            return os.read(handle, count), size
        finally:
            os.close(handle)
    except OSError as error:
        raise _explained(path, error, None) from error


def _open_regular(path: Path) -> tuple[int, int]:
    """A handle, and the size."""
    # O_NONBLOCK: opening a named pipe that nobody writes to would otherwise wait for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode):
        os.close(handle)
        raise PersonalError(f"{show(str(path))} is not a file.")
    return handle, facts.st_size


def _too_large(path: Path, limit: int) -> PersonalError:
    return PersonalError(f"{show(str(path))} is larger than {_megabytes(limit)}, the most I read of such a file.")


def sha256(*parts: bytes | memoryview) -> str:
    """The digest of the parts one after the other, as 64 hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def inside(root: Path, *parts: str) -> Path:
    """`root/parts`, with links resolved. Raises PersonalError where that is not under `root`."""
    top = Path(root).resolve()
    try:
        path = top.joinpath(*parts).resolve()
    except (ValueError, OSError, RuntimeError):  # a NUL, a name too long, a loop of links
        path = None
    if path is None or path == top or not path.is_relative_to(top):
        raise PersonalError(f"{show('/'.join(parts))} is not a place inside {show(str(root))}.")
    return path


def free_bytes(folder: Path) -> int:
    """Free space on the disk that holds `folder`, which need not exist yet."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


# --- writing --------------------------------------------------------------------------------------------------------


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Put the parts, one after the other, at `path`, replacing what is there, all or nothing.

    Raises NoRoom, PersonalError.
    """
    path = Path(path)
    with _told(path, sum(map(len, parts))):
        temporary, guard = _stage(path)
        try:
            handle = os.open(temporary, os.O_WRONLY | _BINARY)
            try:
                for chunk in _gathered(parts):
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
            _let_go(guard)
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """Strict JSON: a NaN raises ValueError rather than being written."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def append_line(path: Path, text: str) -> None:
    """Add one line; readers see it at once. A line cut by an earlier kill is closed first, so it spoils no other."""
    line = (text + "\n").encode()
    with _told(path, len(line)):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)
        try:
            size = os.fstat(handle).st_size
            if size:
                os.lseek(handle, -1, os.SEEK_END)
                if os.read(handle, 1) != b"\n":
                    line = b"\n" + line
            _write(handle, line)
        finally:
            os.close(handle)


def sync(path: Path) -> None:
    """What was appended to the file so far outlives a loss of power too."""
    with _told(path):
        handle = os.open(path, os.O_RDWR | _BINARY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears at `path` complete: fill the one yielded; it is renamed if the block ends well, else gone.

    Raises NoRoom where the block or the renaming meets a full disk, PersonalError where `path` exists.
    """
    path = Path(path)
    make_folder(path.parent)
    with _told(path):
        if os.path.lexists(path):
            raise PersonalError(f"{show(str(path))} is there already.")
        staged, guard = _stage(path, os.mkdir)
    try:
        with _told(path, only=_FULL):  # other troubles inside the block are about other files
            yield staged
        with _told(path):
            _sync_tree(staged)
            os.rename(staged, path)
            _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        _let_go(guard)


def make_folder(path: Path) -> Path:
    """Create the folder and those above it, durably, unless they exist."""
    path = Path(path)
    with _told(path):
        if path.is_dir():
            return path
        if os.path.lexists(path) and not path.is_dir():  # asked again: another process may have made it in between
            raise PersonalError(f"{show(str(path))} is a file, not a folder.")
        make_folder(path.parent)
        with suppress(FileExistsError):  # made by another process just now
            os.mkdir(path)
        _sync_folder(path.parent)
    return path


def rename(old: Path, new: Path) -> None:
    """Give a file or folder another name on the same disk. Raises PersonalError where `new` exists."""
    old, new = Path(old), Path(new)
    with _told(old):
        if os.path.lexists(new):
            raise PersonalError(f"{show(str(new))} is there already.")
        os.rename(old, new)
        for folder in {old.parent, new.parent}:
            _sync_folder(folder)


def remove(path: Path) -> None:
    """Delete a file, a folder with all in it, or a link (never what it points to)."""
    path = Path(path)
    with _told(path):
        if path.is_dir() and not path.is_symlink():
            # Out of sight in one step first: a crash during the deletion must not leave a half-empty folder.
            doomed = _leftover_name(path)
            os.rename(path, doomed)
            _sync_folder(path.parent)
            shutil.rmtree(doomed)
        else:
            os.unlink(path)
        _sync_folder(path.parent)


def remove_empty_folder(path: Path) -> None:
    """Delete the folder if nothing is in it; else do nothing."""
    with suppress(OSError):
        os.rmdir(path)
        _sync_folder(Path(path).parent)


def sweep(folder: Path) -> int:
    """Remove temporary files and folders that killed processes left directly in `folder`; return how many."""
    swept = 0
    if fcntl is None or not os.path.isdir(folder):
        return 0
    for entry in os.scandir(folder):
        if not (entry.name.startswith(".") and entry.name.endswith(_LEFTOVER)) or entry.is_symlink():
            continue
        with suppress(OSError):  # gone meanwhile, or not ours to delete
            handle = os.open(entry.path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError while its writer lives
                if _is_at(handle, entry.path):
                    shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
                    swept += 1
            finally:
                os.close(handle)
    return swept


# --- one at a time --------------------------------------------------------------------------------------------------


@contextmanager
def lock(folder: Path, what: str = "", wait: float = 0.0) -> Iterator[None]:
    """Hold `folder` against other processes, waiting up to `wait` seconds. Raises PersonalError naming the holder.

    what: how the message calls the folder; by default its path. The kernel frees the lock when the process ends,
    however it ends; the lock file stays and means nothing by itself.
    """
    path = make_folder(folder) / LOCK_NAME
    holder = filelock.FileLock(path, timeout=wait, poll_interval=0.02)
    with _told(path):
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


# --- inside ---------------------------------------------------------------------------------------------------------


def _gathered(parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes in few chunks: a concept has thousands of small parts, or large ones that are best not copied."""
    held: list[bytes | memoryview] = []
    size = 0
    for part in parts:
        if size + len(part) > _CHUNK and held:
            yield b"".join(held)
            held, size = [], 0
        held.append(part)
        size += len(part)
    yield held[0] if len(held) == 1 else b"".join(held)


def _write(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _leftover_name(path: Path) -> Path:
    # The target's name is cut: with it the temporary name must still fit in 255 bytes.
    return path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}{_LEFTOVER}")


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # the umask takes its bits away


def _stage(path: Path, create: Callable[[Path], None] = _touch) -> tuple[Path, int | None]:
    """A new temporary file (or folder) beside `path`, and the handle whose lock keeps `sweep` away from it."""
    while True:
        temporary = _leftover_name(path)
        create(temporary)
        if fcntl is None:
            return temporary, None
        with suppress(FileNotFoundError):  # swept between creation and lock: once more
            guard = os.open(temporary, os.O_RDONLY)
            with suppress(OSError):  # a network disk without locks: sweep cannot lock there either, and leaves it
                fcntl.flock(guard, fcntl.LOCK_EX)
            if _is_at(guard, temporary):
                return temporary, guard
            os.close(guard)


def _let_go(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _is_at(handle: int, path: str | Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there; the rename is journalled
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:  # too late to say that nothing was changed
        raise PersonalError(f"{show(str(folder), 200)} was changed, but may forget it: {error.strerror}.") from error


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(place, name), os.O_RDWR)  # Windows flushes only writable handles
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        _sync_folder(Path(place))


@contextmanager
def _told(path: Path, need: int | None = None, only: set[int] | None = None) -> Iterator[None]:
    """Turn what the system says about `path` into one line for the user.

    need: bytes that were to be written; only: the error numbers to explain, others pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        raise _explained(path, error, need) from error


def _explained(path: Path, error: OSError, need: int | None) -> PersonalError:
    if error.errno not in _FULL:
        return PersonalError(f"{show(str(path), 200)}: {error.strerror or error}.")
    wanted = f"need {_megabytes(need)}, " if need is not None else ""
    reason = {
        errno.ENOSPC: lambda: f"{_megabytes(free_bytes(path.parent))} free",
        errno.EDQUOT: lambda: "your quota is used up",
        errno.EFBIG: lambda: "more than one file may have here",
    }[error.errno]()
    return NoRoom(f"no room in {show(str(path.parent), 200)}: {wanted}{reason}. Nothing was changed.")


def _megabytes(count: int) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
