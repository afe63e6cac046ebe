"""Match module paths with the patterns of PEFT's `alpha_pattern` and `rank_pattern`, in linear time.

PEFT runs each pattern as a regular expression on each path, `(.*\\.)?(pattern)$`. A hostile file's would never end, so
none is run here. Those that name modules are looked up, and of the others, words, sets, alternatives and at most two
parts of any length are read, all at once by one automaton (bit-parallel: Navarro and Raffinot, Flexible Pattern
Matching in Strings, 2002, chapter 4).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_PATTERNS, MAX_PATTERN_LENGTH = 2048, 250
_MAX_RUNS = 2  # parts of any length in one pattern
_MAX_STATES = 1024  # of the automaton: characters of all patterns that are more than names
_NAME = re.compile(r"(?P<anchor>\^?)(?P<name>(?:[A-Za-z0-9_-]|\.(?![*+?{])|\\[._-])++)\$?")
_PATTERN = re.compile(
    r"\^?(?:[A-Za-z0-9_-]|\\d\+|\\[.dw_-]|\.(?![*+?{])|\[[A-Za-z0-9_-]{1,40}\]\+?|"
    r"\((?:\?:)?(?:[A-Za-z0-9_.|]|\\[.dw_-]){1,200}+\)|\.[*+])*+\$?"
)
_ITEM = re.compile(
    r"\((?:\?:)?(?P<group>[^()]*)\)|(?P<characters>\\.|\[[^\[\]]*\]|[^\\()\[\]^$])(?P<repeat>[*+]?)", re.DOTALL
)
_ASCII = [chr(code) for code in range(128)]
_OTHER = "\x80"  # stands for every character beyond ASCII, which only a `.` matches


class RefusedPattern(ValueError):
    """A pattern that is not read; its text is that pattern."""


@dataclass(frozen=True)
class _Item:
    """One place of a pattern: the characters that fit, repeated or not, or left out or not."""

    characters: frozenset[str]
    repeated: bool
    optional: bool


class PatternTable:
    """The patterns of one table, in its order. Raises RefusedPattern."""

    def __init__(self, patterns: Sequence[str]):
        if len(patterns) > MAX_PATTERNS:
            raise RefusedPattern(patterns[0])
        self._names: dict[str, int] = {}  # those that may stand behind any dot, by what they name
        self._anchored: dict[str, int] = {}
        self._automaton = _Automaton()
        for number, pattern in enumerate(patterns):
            if len(pattern) > MAX_PATTERN_LENGTH:
                raise RefusedPattern(pattern)
            if name := _NAME.fullmatch(pattern):
                table = self._anchored if name["anchor"] else self._names
                table.setdefault(name["name"].replace("\\", ""), number)
            else:
                self._automaton.add(pattern, number)

    def first_match(self, path: str) -> int | None:
        """Return the number of the first pattern that matches the path, or its end after a dot."""
        ends = [path, *(path[match.end() :] for match in re.finditer(r"\.", path))] if self._names else []
        numbers = [self._names[end] for end in ends if end in self._names]
        numbers += [number for number in (self._anchored.get(path), self._automaton.match(path)) if number is not None]
        return min(numbers, default=None)


class _Automaton:
    """All patterns at once. Bit p of a state: a pattern has matched up to its item p; each has a last bit more."""

    def __init__(self) -> None:
        self.items: list[_Item | None] = []  # None at the end of a pattern
        self.first = self.behind_dot = self.optional = 0  # bits where patterns begin, at all or behind any dot
        self.ends: list[tuple[int, int]] = []  # (bit, number of the pattern), rising
        self.masks: dict[str, tuple[int, int]] = {}

    def add(self, pattern: str, number: int) -> None:
        for items in _variants(pattern):
            start = len(self.items)
            self.first |= 1 << start
            self.behind_dot |= 0 if pattern.startswith("^") else 1 << start
            self.optional |= sum(1 << (start + place) for place, item in enumerate(items) if item.optional)
            self.items += [*items, None]
            self.ends.append((len(self.items) - 1, number))
            if len(self.items) > _MAX_STATES:
                raise RefusedPattern(pattern)

    def match(self, path: str) -> int | None:
        if not self.items:
            return None
        masks, behind_dot, optional = self.masks, self.behind_dot, self.optional
        state = self.first
        for character in ("", *path):  # first without a character, for what may be left out at the beginning
            if character:
                character = character if character < _OTHER else _OTHER
                if character not in masks:
                    masks[character] = self._masks_of(character)
                goes_on, stays = masks[character]
                state = (state & goes_on) << 1 | state & stays
                if character == ".":
                    state |= behind_dot
            if left_out := state & optional:  # at most _MAX_RUNS in a row
                state |= left_out << 1
                state |= (state & optional) << 1
        return next((number for bit, number in self.ends if state >> bit & 1), None)

    def _masks_of(self, character: str) -> tuple[int, int]:
        """Return the bits from which the character leads to the next, and those where it may be repeated."""
        goes_on = stays = 0
        for bit, item in enumerate(self.items):
            if item and character in item.characters:
                goes_on |= 1 << bit
                stays |= item.repeated << (bit + 1)
        return goes_on, stays


def _variants(pattern: str) -> Iterator[list[_Item]]:
    """Yield the pattern without alternatives, once for each of them. Raises RefusedPattern."""
    if not _PATTERN.fullmatch(pattern) or len(re.findall(r"[*+]", pattern)) > _MAX_RUNS:
        raise RefusedPattern(pattern)
    variants: list[list[_Item]] = [[]]
    try:
        for match in _ITEM.finditer(pattern):
            if match["group"] is None:
                choices = [[_item(match["characters"], match["repeat"])]]
            else:
                choices = [[_item(part[0]) for part in _ITEM.finditer(text)] for text in match["group"].split("|")]
            variants = [[*before, *choice] for before in variants for choice in choices]
            if sum(map(len, variants)) > _MAX_STATES:
                raise RefusedPattern(pattern)
    except re.error:  # a set from z to a
        raise RefusedPattern(pattern) from None
    yield from variants


def _item(characters: str, repeat: str = "") -> _Item:
    return _Item(_matching_characters(characters), bool(repeat), repeat == "*")


@functools.lru_cache(maxsize=1024)
def _matching_characters(expression: str) -> frozenset[str]:
    """Return the characters that an expression of one character matches."""
    pattern = re.compile(expression, re.ASCII)
    return frozenset(character for character in (*_ASCII, _OTHER) if pattern.fullmatch(character))
