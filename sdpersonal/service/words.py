"""What a page says about what went wrong."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..errors import PersonalError

log = logging.getLogger(__name__)
P, T = ParamSpec("P"), TypeVar("T")


def in_words(error: Exception) -> str:
    """A user's mistake in full, else a number that the terminal's log explains: nothing of our inside is shown."""
    if isinstance(error, PersonalError):
        return str(error)
    number = uuid.uuid4().hex[:8]
    log.error("failure %s", number, exc_info=error)
    return f"Something went wrong here (failure {number}; the terminal shows what). Nothing was lost: try again."


def tried(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> tuple[T | None, str]:
    """What the work returns and "", or None and what went wrong in words."""
    try:
        return work(*args, **named), ""
    except Exception as error:
        return None, in_words(error)
