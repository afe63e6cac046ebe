"""Tell when things in a trash were deleted: the names of deletions, and whether the clock can be relied on.

The clock may be wrong. If it stands more than `RETENTION` after every trace of use, the file `.clock` in the trash
keeps that time, and nothing is deleted for good until a week later: by then a wrong clock was noticed.
"""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..errors import UserError
from .atomic import write_text
from .folders import remove
from .reading import read_bytes

RETENTION = timedelta(days=30)

_CLOCK_FILE = ".clock"
_DOUBT = timedelta(days=7)  # how long a time far ahead of all others is not relied on
_MAX_AHEAD = timedelta(days=1)
_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_DELETION_NAME = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]{8}")


def new_deletion_name(now: datetime) -> str:
    """Return a name for a deletion at this time that no other deletion has."""
    return f"{now.strftime(_TIME_FORMAT)}-{secrets.token_hex(4)}"


def deletion_time(name: object) -> datetime | None:
    """Return the time in a deletion's name; None for any other name."""
    match = _DELETION_NAME.fullmatch(name) if isinstance(name, str) else None
    return _parse_time(match[1]) if match else None


def is_clock_right(trash: Path, now: datetime, last_used: datetime) -> bool:
    """Return whether the time can be relied on; keep it for later if it is too far from all that came before.

    last_used: the time of the newest trace of use before this one. Raises UserError.
    """
    path = trash / _CLOCK_FILE
    noted_at = _parse_time(_read_text(path))
    if noted_at is None or noted_at > now:  # the clock was set back since: the time before it was wrong
        if now - last_used < RETENTION:
            return True
        write_text(path, now.strftime(_TIME_FORMAT))
        return False
    if now - noted_at < _DOUBT:
        return False
    remove(path)
    return True


def is_ahead(deleted_at: datetime, now: datetime) -> bool:
    """Return whether a deletion is dated so far ahead of the clock that one of both is wrong."""
    return deleted_at - now > _MAX_AHEAD


def _read_text(path: Path) -> str:
    with suppress(UserError):
        return read_bytes(path, 100).decode(errors="replace")
    return ""


def _parse_time(text: str) -> datetime | None:
    with suppress(ValueError):
        return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)
    return None
