"""What a page says about what went wrong."""

from __future__ import annotations

import logging
import uuid

from ..errors import PersonalError

log = logging.getLogger(__name__)


def in_words(error: Exception) -> str:
    """A user's mistake in full, else a number that the terminal's log explains: nothing of our inside is shown."""
    if isinstance(error, PersonalError):
        return str(error)
    number = uuid.uuid4().hex[:8]
    log.error("failure %s", number, exc_info=error)
    return f"Something went wrong here (failure {number}; the terminal shows what). Nothing was lost: try again."
