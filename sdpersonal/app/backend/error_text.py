"""What a page says about what went wrong."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ...config.text_checks import IF_UNSET
from ...errors import FieldError, PersonalError

log = logging.getLogger(__name__)
P, T = ParamSpec("P"), TypeVar("T")


# What the page calls the fields of `Request` and of the trainers' settings; `ui` lays them out under these names.
LABELS = {
    "prompt": "Prompt",
    "negative": "Negative prompt",
    "n": "Pictures",
    "steps": "Steps",
    "guidance": "Guidance",
    "size": "Size",
    "seed": "Seed",
    "every": "Every alternative",
    "enlarge": "Enlarge",
    "rescale": "Rescale",
    "fast": "Fast",
    "scheduler": "Scheduler",
    "clip_skip": "Clip skip",
    "change": "Change",
    "start": "Start picture",
    "class_noun": "What is it?",
    "init": "What is it?",
    "token": "Its name",
    "lr": "Learning rate",
    "rank": "LoRA rank",
    "resolution": "Side in pixels",
}


def labelled(error: PersonalError) -> PersonalError:
    """The same in a page's words: its name for the field, where it is about one, and nothing of shells."""
    if isinstance(error, FieldError) and error.fix == IF_UNSET:
        error = FieldError(error.field, error.problem)
    if isinstance(error, FieldError) and error.field in LABELS and error.problem.startswith(f"{error.field} "):
        return error.called(LABELS[error.field])
    return error


def in_words(error: Exception) -> str:
    """A user's mistake in full, else a number that the terminal's log explains: nothing of our inside is shown."""
    if isinstance(error, PersonalError):
        return str(labelled(error))
    number = uuid.uuid4().hex[:8]
    log.error("failure %s", number, exc_info=error)
    return f"Something went wrong here (failure {number}; the terminal shows what). Nothing was lost: try again."


def tried(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> tuple[T | None, str]:
    """What the work returns and "", or None and what went wrong in words."""
    try:
        return work(*args, **named), ""
    except Exception as error:
        return None, in_words(error)
