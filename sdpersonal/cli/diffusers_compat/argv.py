"""A command line as items: a flag's name with the words after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import PersonalError
from ...prompts import show


@dataclass(frozen=True)
class Item:
    """One flag as typed. name: without dashes in front, with `_` for `-`, "" for words before any flag; words: raw."""

    name: str
    words: tuple[str, ...]

    @property
    def flag(self) -> str:
        """As typed, without a value."""
        return self.words[0].partition("=")[0]

    @property
    def values(self) -> tuple[str, ...]:
        _, equals, value = self.words[0].partition("=")
        return (value, *self.words[1:]) if equals else self.words[1:]


def split(argv: Sequence[str]) -> list[Item]:
    """The items of a command line. What is no flag belongs to the flag before it."""
    items: list[Item] = []
    for word in argv:
        if word.startswith("--") or word == "-h" or not items:
            named = word.startswith("--")
            items.append(Item(word[2:].partition("=")[0].replace("-", "_") if named else "", (word,)))
        else:
            items[-1] = Item(items[-1].name, (*items[-1].words, word))
    return items


def join(items: Sequence[Item]) -> list[str]:
    return [word for item in items for word in item.words]


def value_of(item: Item) -> str:
    """Its one value. Raises PersonalError where there is none, an empty one, or several."""
    values = item.values
    if len(values) > 1:
        together = show(" ".join(values))
        raise PersonalError(
            f"{item.flag} takes one value, got {len(values)} words.", f"Put them in quotes: {item.flag} '{together}'."
        )
    if not values:
        raise PersonalError(f"{item.flag} needs a value.")
    if not values[0].strip():
        raise PersonalError(f"{item.flag} is empty.", "If it comes from a shell variable, that is not set.")
    return values[0]


def no_value(item: Item) -> str:
    """ "", or PersonalError where a switch is given a value."""
    if item.values:
        raise PersonalError(f"{item.flag} takes no value, got {show(' '.join(item.values), 40)}.")
    return ""
