"""Templates to trees of choices: `{a|b}`, `{2::a|b}`, `{1-2$$ and $$a|b|c}`, `__list__`, one within another.

The notation is that of the dynamic-prompts extension (adieyal/sd-dynamic-prompts, docs/SYNTAX.md), without its
variables (their defaults are read) and remarks. A backslash keeps its meaning for whoever reads the prompt afterwards.
"""

from __future__ import annotations

import re

from ..errors import PersonalError, show
from .combinatorics import Node, Pick, Series
from .wildcards import Wildcards

MAX_NESTING = 10
MAX_CHOICES = 500  # that one expansion makes
MAX_PICKED = 20  # options of one alternative at once
JOINER = ", "

_UNIT = 1_000_000  # weights are counted in millionths, so that chance is whole numbers
_MAX_WEIGHT = 1_000_000
_NAME = r"__(?P<name>(?:[^\W_]|[*?('&\[](?=[^\s_]|__)|[#~@!](?=[^\W_]))[^\n{}|\\]*?)__"
_DEFAULT = re.compile(r"\$\{\s*[\w-]+\s*:(?!=)([^{}|\\]*)\}")  # ${figure:frog}, a variable that nobody can have set
_LEXEME = re.compile(
    rf"(?P<escape>\\.?)|(?P<variable>\$\{{)|(?P<open>\{{)|(?P<stroke>\|)|(?P<close>\}})|(?P<list>{_NAME})"
    r"|(?P<text>[^\\$_{}|]+|[$_])",
    re.DOTALL,
)
_HOW_MANY = re.compile(r"\s*(?:(?P<exactly>[0-9]+)|(?P<low>[0-9]*)-(?P<high>[0-9]*))\s*\$\$")
_JOINER = re.compile(r"([^{}|$\\]*)\$\$")
_WEIGHT = re.compile(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*::")


def has_alternatives(template: str) -> bool:
    """Whether something is to be chosen in it."""
    return any(lexeme.lastgroup in ("variable", "open", "list") for lexeme in _LEXEME.finditer(template))


def read_template(template: str, wildcards: Wildcards) -> Node:
    """The tree, its lists included. Raises PersonalError for what is not closed, unknown, endless or too much."""
    tree = _Lists(wildcards).read(template)
    if tree.height > MAX_NESTING:
        raise PersonalError(f"{show(template)} nests {tree.height} deep; I go {MAX_NESTING} deep.", "Make it flatter.")
    if tree.reach > MAX_CHOICES:
        raise PersonalError(
            f"{show(template)} makes up to {tree.reach:,} choices for one prompt; I make {MAX_CHOICES}.", "Shorten it."
        )
    return tree


class _Lists:
    """Lists as picks, each read once for a template, however often it stands there."""

    def __init__(self, wildcards: Wildcards):
        self._wildcards = wildcards
        self._read: dict[str, Pick] = {}
        self._reading: list[str] = []  # lists within lists, at this moment

    def read(self, text: str) -> Series:
        where = f"In __{show(self._reading[-1], 60)}__: " if self._reading else ""
        return _Reader(text, self, where).series(inside=False)

    def pick(self, name: str) -> Pick:
        if name in self._reading:
            loop = [*self._reading[self._reading.index(name) :], name]
            raise PersonalError(
                f"The list __{show(name, 60)}__ leads back to itself: "
                + " > ".join(show(one, 60) for one in loop)
                + ".",
                "Take it out of one of them.",
            )
        if len(self._reading) >= MAX_NESTING:
            raise PersonalError(
                f"Lists lead to lists more than {MAX_NESTING} deep, at __{show(name, 60)}__.", "Make them flatter."
            )
        if name not in self._read:
            lines = self._wildcards.lines(name)
            self._reading.append(name)
            self._read[name] = _pick([self._option(line) for line in lines], f"__{show(name, 60)}__")
            self._reading.pop()
        return self._read[name]

    def _option(self, line: str) -> tuple[str, int, Node]:
        weight, start = _weight_at(line, 0)
        text = line[start:]
        return text, weight, self.read(text) if re.search(r"[{\\$_]", text) else text


class _Reader:
    """Reads one text from left to right."""

    def __init__(self, text: str, lists: _Lists, where: str):
        self._text, self._lists, self._where = text, lists, where
        self._at = 0
        self._open = 0  # braces

    def series(self, inside: bool) -> Series:
        """As far as the text goes; inside braces as far as the option goes."""
        parts: list[Node] = []
        while self._at < len(self._text):
            if default := _DEFAULT.match(self._text, self._at):
                parts.append(default[1])
                self._at = default.end()
                continue
            lexeme = _LEXEME.match(self._text, self._at)
            kind = lexeme.lastgroup
            if inside and kind in ("stroke", "close"):
                break
            self._at = lexeme.end()
            if kind == "open":
                parts.append(self._braces(lexeme.start()))
            elif kind == "list":
                parts.append(self._lists.pick(lexeme["name"].strip()))
            elif kind == "variable":
                raise PersonalError(
                    f"{self._where}{show(self._text[lexeme.start() :], 40)} sets or uses a variable; I have none.",
                    r"Write what it stands for; for the signs themselves $\{.",
                )
            else:
                parts.append(lexeme[0])
        return Series(parts)

    def _braces(self, start: int) -> Pick:
        self._open += 1
        if self._open > MAX_NESTING:
            raise PersonalError(
                f"{self._where}{show(self._text[start:], 40)} nests more than {MAX_NESTING} deep.", "Make it flatter."
            )
        low, high, joiner = self._how_many()
        options = [self._option()]
        while self._at < len(self._text) and self._text[self._at] == "|":
            self._at += 1
            options.append(self._option())
        if self._at == len(self._text):
            raise PersonalError(
                f"{self._where}the brace before {show(self._text[start + 1 :], 40)!r} is never closed.",
                r"For example {samurai|cowboy}; for the brace itself \{.",
            )
        self._at += 1
        self._open -= 1
        pick = self._pick(options, start)
        high = min(len(pick.options), high)
        if high > MAX_PICKED:
            raise PersonalError(
                f"{self._where}{show(self._text[start : self._at], 40)} picks up to {high:,} at once; "
                f"I pick up to {MAX_PICKED}.",
                f"For example {{1-{MAX_PICKED}$$a|b|c}}.",
            )
        return Pick(pick.options, pick.weights, min(low, high), high, joiner)

    def _pick(self, options: list[tuple[str, int, Node]], start: int) -> Pick:
        # {2$$__colour__} takes two of the list's lines, not two of one list.
        if len(options) == 1 and (alone := re.fullmatch(rf"\s*{_NAME}\s*", options[0][0])):
            return self._lists.pick(alone["name"].strip())
        return _pick(options, self._where + show(self._text[start : self._at], 40))

    def _option(self) -> tuple[str, int, Node]:
        weight, self._at = _weight_at(self._text, self._at, self._where)
        start = self._at
        series = self.series(inside=True)
        return self._text[start : self._at], weight, series

    def _how_many(self) -> tuple[int, int, str]:
        """How many options are picked, at least and at most, and what stands between them."""
        found = _HOW_MANY.match(self._text, self._at)
        if not found:
            return 1, 1, ""
        self._at = found.end()
        joiner = JOINER
        if between := _JOINER.match(self._text, self._at):
            self._at = between.end()
            joiner = between[1]
        if found["exactly"]:
            return int(found["exactly"]), int(found["exactly"]), joiner
        low, high = int(found["low"] or 1), int(found["high"] or 10**9)
        return min(low, high), max(low, high), joiner


def _weight_at(text: str, at: int, where: str = "") -> tuple[int, int]:
    """The weight that stands there, in millionths, and where the option itself begins."""
    found = _WEIGHT.match(text, at)
    if not found:
        return _UNIT, at
    if float(found[1]) > _MAX_WEIGHT:
        raise PersonalError(f"{where}{show(found[0], 40)} weighs too much.", f"I take up to {_MAX_WEIGHT:,}::.")
    whole, _, fraction = found[1].partition(".")
    return int(whole or 0) * _UNIT + int(fraction[:6].ljust(6, "0")), found.end()


def _pick(options: list[tuple[str, int, Node]], what: str) -> Pick:
    """One of the options (as written, weight, tree). One that stands there twice is one of twice the weight."""
    weights: dict[str, int] = {}
    trees: dict[str, Node] = {}
    for text, weight, tree in options:
        if weight:
            weights[text] = weights.get(text, 0) + weight
            trees.setdefault(text, tree)
    if not trees:
        raise PersonalError(f"All options of {what} have the weight 0.", "For example {2::often|seldom}.")
    return Pick(list(trees.values()), list(weights.values()))
