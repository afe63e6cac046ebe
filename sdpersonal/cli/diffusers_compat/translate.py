"""Translate diffusers' command lines to ours: argv in, argv and notes out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ...config import TrainingSettings
from ...errors import UserError, printable
from .argv import ArgvItem, check_no_value, join_argv, single_value, split_argv
from .flags import DIFFUSERS_FLAGS, SWITCHES, IgnoredFlag, RefusedFlag, RenamedFlag, SameFlag, SwitchFlag
from .rules import RULES
from .state import Environment, TranslationState

_MAX_SHOWN = 2000  # characters of a command line repeated to its author


@dataclass(frozen=True)
class Translation:
    """A translated command line. notes: differences that the user should know, a line each."""

    argv: list[str]
    notes: list[str]


def translate(settings: type[TrainingSettings], argv: Sequence[str], machine: Environment) -> Translation:
    """Translate diffusers' flags, with `_` or `-`, to ours; our own and unknown flags stay as they are.

    Raises UserError if a flag changes the training in a way that is not supported here, or if values are missing,
    empty or contradictory.
    """
    items = split_argv(argv)
    if any(word in ("-h", "--help") for word in argv):
        return Translation(list(argv), [])
    stay = [item for item in items if not _is_diffusers_flag(item, settings)]
    state = TranslationState(settings, machine, {item.name: " ".join(item.values) or None for item in stay})
    for item in items:
        if _is_diffusers_flag(item, settings):
            state.diffusers_flags[item.name] = check_no_value(item) if item.name in SWITCHES else single_value(item)
    for name, value in state.diffusers_flags.items():
        _apply(state, name, value)
    for rule in RULES:
        rule(state)
    translated_argv = join_argv(stay) + [
        word for name, value in state.added.items() for word in _format_flag(name, value)
    ]
    if state.is_diffusers:
        state.notes.insert(0, "the same in this program's flags: " + printable(shlex.join(translated_argv), _MAX_SHOWN))
    return Translation(translated_argv, state.notes)


def _is_diffusers_flag(item: ArgvItem, settings: type[TrainingSettings]) -> bool:
    flag = DIFFUSERS_FLAGS.get(item.name)
    return flag is not None and not (isinstance(flag, SameFlag) and item.name in settings.model_fields)


def _apply(state: TranslationState, name: str, value: str) -> None:
    match DIFFUSERS_FLAGS[name]:
        case RenamedFlag(ours):
            state.set_flag(ours, value, by=name)
        case SwitchFlag(ours, fixed):
            state.set_flag(ours, fixed, by=name)
        case SameFlag():
            state.set_flag(name, value, by=name)  # fails if the trainer has no such setting, with a message
        case IgnoredFlag(why, usual) if not _is_accepted(value, usual):
            state.note(f"--{name}: {why}")
        case RefusedFlag(why, usual) if not _is_accepted(value, usual):
            raise UserError(f"--{name}: {why}", "Leave it out to continue without it.")


def _is_accepted(value: str, usual: tuple[str, ...]) -> bool:
    try:
        return float(value) in map(float, usual)
    except ValueError:
        return value.lower() in usual


def _format_flag(name: str, value: str | None) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return [flag]
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]
