"""diffusers' command lines to ours: argv in, argv and a few lines to say out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ...config import Training
from ...errors import PersonalError
from ...prompts import show
from .argv import Item, join, no_value, split, value_of
from .environment import Surroundings
from .flags import HABITS, SWITCHES, Kept, Noted, Refused, Renamed, Switch
from .rules import RULES
from .state import Reading

_MOST_SHOWN = 2000  # characters of a command line repeated to its author


@dataclass(frozen=True)
class Translation:
    """argv: our command line; notes: what the user should know of the difference, a line each."""

    argv: list[str]
    notes: list[str]


def translate(settings: type[Training], argv: Sequence[str], machine: Surroundings) -> Translation:
    """Read diffusers' flags, with `_` or `-`, as ours; what is ours or nobody's stays as it is.

    Raises PersonalError where a flag changes what would be learned in a way that is not built here, and where values
    are missing, empty or at odds.
    """
    items = split(argv)
    if any(word in ("-h", "--help") for word in argv):
        return Translation(list(argv), [])
    stay = [item for item in items if not _is_theirs(item, settings)]
    reading = Reading(settings, machine, {item.name: " ".join(item.values) or None for item in stay})
    for item in items:
        if _is_theirs(item, settings):
            reading.theirs[item.name] = no_value(item) if item.name in SWITCHES else value_of(item)
    for name, value in reading.theirs.items():
        _apply(reading, name, value)
    for rule in RULES:
        rule(reading)
    ours = join(stay) + [word for name, value in reading.added.items() for word in _words(name, value)]
    if reading.is_diffusers:
        reading.notes.insert(0, "in this program's own words: " + show(shlex.join(ours), _MOST_SHOWN))
    return Translation(ours, reading.notes)


def _is_theirs(item: Item, settings: type[Training]) -> bool:
    habit = HABITS.get(item.name)
    return habit is not None and not (isinstance(habit, Kept) and item.name in settings.model_fields)


def _apply(reading: Reading, name: str, value: str) -> None:
    match HABITS[name]:
        case Renamed(ours):
            reading.put(ours, value, by=name)
        case Switch(ours, fixed):
            reading.put(ours, fixed, by=name)
        case Kept():
            reading.put(name, value, by=name)  # only where the trainer has no such setting: says so
        case Noted(why, usual) if not _among(value, usual):
            reading.note(f"--{name}: {why}")
        case Refused(why, usual) if not _among(value, usual):
            raise PersonalError(f"--{name}: {why}", "Leave it out to go on without it.")


def _among(value: str, usual: tuple[str, ...]) -> bool:
    try:
        return float(value) in map(float, usual)
    except ValueError:
        return value.lower() in usual


def _words(name: str, value: str | None) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return [flag]
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]
