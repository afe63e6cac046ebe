"""Split a command line into items: a flag's name with the arguments after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import UserError, printable


@dataclass(frozen=True)
class ArgvItem:
    """One flag as typed. name: without leading dashes, with `_` for `-`, "" for words before any flag; words: raw."""

    name: str
    words: tuple[str, ...]

    @property
    def flag(self) -> str:
        """Return the flag as typed, without a value."""
        return self.words[0].partition("=")[0]

    @property
    def values(self) -> tuple[str, ...]:
        _, equals, value = self.words[0].partition("=")
        return (value, *self.words[1:]) if equals else self.words[1:]


def split_argv(argv: Sequence[str]) -> list[ArgvItem]:
    """Split a command line into items. A word that is no flag belongs to the flag before it."""
    items: list[ArgvItem] = []
    for word in argv:
        if word.startswith("--") or word == "-h" or not items:
            named = word.startswith("--")
            items.append(ArgvItem(word[2:].partition("=")[0].replace("-", "_") if named else "", (word,)))
        else:
            items[-1] = ArgvItem(items[-1].name, (*items[-1].words, word))
    return items


def join_argv(items: Sequence[ArgvItem]) -> list[str]:
    return [word for item in items for word in item.words]


def single_value(item: ArgvItem) -> str:
    """Return the item's one value. Raises UserError if it is missing, empty or not the only one."""
    values = item.values
    if len(values) > 1:
        together = printable(" ".join(values))
        raise UserError(
            f"{item.flag} takes one value, got {len(values)} words.", f"Put them in quotes: {item.flag} '{together}'."
        )
    if not values:
        raise UserError(f"{item.flag} needs a value.")
    if not values[0].strip():
        raise UserError(f"{item.flag} is empty.", "If it comes from a shell variable, that is not set.")
    return values[0]


def check_no_value(item: ArgvItem) -> str:
    """Return "". Raises UserError if the switch has a value."""
    if item.values:
        raise UserError(f"{item.flag} takes no value, got {printable(' '.join(item.values), 40)}.")
    return ""
