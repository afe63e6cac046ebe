"""Dying, or failing, at the n-th thing that is done to the disk: the method of SQLite's crash and I/O-error tests.

Everything happens in real child processes. A child that dies takes with it what it had not flushed: files written but
not fsynced are cut, as after a power loss.
"""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable

from sdpersonal.errors import DiskFull, UserError
from sdpersonal.storage import atomic

CALLS = [(os, name) for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir")] + [(atomic, "_write")]
DIED, DONE, NO_ROOM, REFUSED, BROKEN = 9, 0, 3, 2, 1


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child: DONE, NO_ROOM, REFUSED, BROKEN (after a traceback), or the child's own status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = BROKEN
    try:
        work()
        status = DONE
    except DiskFull:
        status = NO_ROOM
    except UserError:
        status = REFUSED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # nothing of pytest's own may run in the child


def die_at(n: int, work: Callable[[], None]) -> int:
    """DIED where the n-th call killed the child before it was made; DONE where there were fewer calls."""
    return in_child(lambda: (_patch(n, _die), work()))


def fail_at(n: int, number: int, work: Callable[[], None], calls: list = CALLS) -> int:
    """The n-th of `calls` raises OSError(number)."""

    def fail():
        raise OSError(number, os.strerror(number))

    return in_child(lambda: (_patch(n, fail, calls), work()))


def calls_made(work: Callable[[], None], calls: list = CALLS) -> int:
    """How many of `calls` the work makes when nothing goes wrong; its effects are those of a real run."""
    reader, writer = os.pipe()

    def counting():
        made = [0]

        def counted(real):
            def called(*arguments, **named):
                made[0] += 1
                return real(*arguments, **named)

            return called

        for module, name in calls:
            setattr(module, name, counted(getattr(module, name)))
        work()
        os.write(writer, bytes([made[0]]))

    assert in_child(counting) == DONE
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read()[0]


_unsynced: dict[tuple[int, int], int] = {}  # (device, inode) -> a handle of its own, in the child
_synced: dict[tuple[int, int], int] = {}  # -> bytes at its beginning that were flushed


def _die() -> None:
    cut = random.Random(1)
    for key, handle in _unsynced.items():
        os.ftruncate(handle, cut.randint(_synced.get(key, 0), os.fstat(handle).st_size))
    os._exit(DIED)  # no cleanup, as with kill -9


def _patch(n: int, act: Callable[[], None], calls: list = CALLS) -> None:
    left = [n]

    def wrap(real, name):
        def called(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                act()
            if name not in ("_write", "fsync"):
                return real(*arguments, **named)
            status = os.fstat(arguments[0])
            key = (status.st_dev, status.st_ino)
            result = real(*arguments, **named)
            if name == "_write":
                _unsynced.setdefault(key, os.dup(arguments[0]))
                _synced[key] = min(_synced.get(key, 0), status.st_size)  # an inode may be a new file's
            else:
                _unsynced.pop(key, None)
                _synced[key] = status.st_size
            return result

        return called

    for module, name in calls:
        setattr(module, name, wrap(getattr(module, name), name))
