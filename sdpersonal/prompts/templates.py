"""Parse templates into trees of choices: `{a|b}`, `{2::a|b}`, `{1-2$$ and $$a|b|c}`, `__list__`, nested freely.

The notation is that of the dynamic-prompts extension (adieyal/sd-dynamic-prompts, docs/SYNTAX.md), without its
variables (their defaults are used) and comments. Backslashes are kept for the parser of the resulting prompt.
"""

from __future__ import annotations

import re
from typing import cast

from ..errors import UserError, printable
from .combinatorics import Node, SequenceNode, VariantNode
from .wildcards import Wildcards

MAX_NESTING = 10
MAX_CHOICES = 500  # of one expansion
MAX_PICKS = 20  # options picked from one alternative
DEFAULT_SEPARATOR = ", "

_UNIT = 1_000_000  # weights are integers in millionths, so that sampling is exact
_MAX_WEIGHT = 1_000_000
_NAME = r"__(?P<name>(?:[^\W_]|[*?('&\[](?=[^\s_]|__)|[#~@!](?=[^\W_]))[^\n{}|\\]*?)__"
_DEFAULT = re.compile(r"\$\{\s*[\w-]+\s*:(?!=)([^{}|\\]*)\}")  # ${figure:frog}, a variable; none can be set here
_LEXEME = re.compile(
    rf"(?P<escape>\\.?)|(?P<variable>\$\{{)|(?P<open>\{{)|(?P<stroke>\|)|(?P<close>\}})|(?P<list>{_NAME})"
    r"|(?P<text>[^\\$_{}|]+|[$_])",
    re.DOTALL,
)
_PICK_COUNT = re.compile(r"\s*(?:(?P<exactly>[0-9]+)|(?P<low>[0-9]*)-(?P<high>[0-9]*))\s*\$\$")
_SEPARATOR = re.compile(r"([^{}|$\\]*)\$\$")
_WEIGHT = re.compile(r"\s*+([0-9]++\.?[0-9]*+|\.[0-9]++)\s*+::")


def has_alternatives(template: str) -> bool:
    """Return whether the template has alternatives."""
    return any(lexeme.lastgroup in ("variable", "open", "list") for lexeme in _LEXEME.finditer(template))


def parse_template(template: str, wildcards: Wildcards) -> Node:
    """Parse a template and its lists into a tree. Raises UserError if it is unclosed, unknown, endless or too large."""
    tree = _WildcardNodes(wildcards).read(template)
    if tree.depth > MAX_NESTING:
        raise UserError(
            f"{printable(template)} nests {tree.depth} deep; the limit is {MAX_NESTING}.", "Make it flatter."
        )
    if tree.max_choices > MAX_CHOICES:
        raise UserError(
            f"{printable(template)} makes {tree.max_choices:,} choices for one prompt; the limit is {MAX_CHOICES}.",
            "Shorten it.",
        )
    return tree


class _WildcardNodes:
    """Nodes of wildcard lists, each list parsed only once per template."""

    def __init__(self, wildcards: Wildcards):
        self._wildcards = wildcards
        self._read: dict[str, VariantNode] = {}
        self._reading: list[str] = []  # stack of the lists being parsed, to detect cycles

    def read(self, text: str) -> SequenceNode:
        where = f"In __{printable(self._reading[-1], 60)}__: " if self._reading else ""
        return _TemplateParser(text, self, where).series(inside=False)

    def variant(self, name: str) -> VariantNode:
        if name in self._reading:
            loop = [*self._reading[self._reading.index(name) :], name]
            raise UserError(
                f"The list __{printable(name, 60)}__ leads back to itself: "
                + " > ".join(printable(list_name, 60) for list_name in loop)
                + ".",
                "Take it out of one of them.",
            )
        if len(self._reading) >= MAX_NESTING:
            raise UserError(
                f"Lists lead to lists more than {MAX_NESTING} deep, at __{printable(name, 60)}__.", "Make them flatter."
            )
        if name not in self._read:
            lines = self._wildcards.lines(name)
            self._reading.append(name)
            self._read[name] = _make_variant([self._option(line) for line in lines], f"__{printable(name, 60)}__")
            self._reading.pop()
        return self._read[name]

    def _option(self, line: str) -> tuple[str, int, Node]:
        weight, start = _parse_weight(line, 0)
        text = line[start:]
        return text, weight, self.read(text) if re.search(r"[{\\$_]", text) else text


class _TemplateParser:
    """Parser of one text, from left to right."""

    def __init__(self, text: str, lists: _WildcardNodes, where: str):
        self._text, self._lists, self._where = text, lists, where
        self._at = 0
        self._open = 0  # braces

    def series(self, inside: bool) -> SequenceNode:
        """Parse up to the end of the text; inside braces, up to the end of the option."""
        parts: list[Node] = []
        while self._at < len(self._text):
            if default := _DEFAULT.match(self._text, self._at):
                parts.append(default[1])
                self._at = default.end()
                continue
            lexeme = cast(re.Match[str], _LEXEME.match(self._text, self._at))  # any character begins a lexeme
            kind = lexeme.lastgroup
            if inside and kind in ("stroke", "close"):
                break
            self._at = lexeme.end()
            if kind == "open":
                parts.append(self._braces(lexeme.start()))
            elif kind == "list":
                parts.append(self._lists.variant(lexeme["name"].strip()))
            elif kind == "variable":
                raise UserError(
                    f"{self._where}{printable(self._text[lexeme.start() :], 40)} is a variable; there are none here.",
                    r"Write what it stands for; for the signs themselves $\{.",
                )
            else:
                parts.append(lexeme[0])
        return SequenceNode(parts)

    def _braces(self, start: int) -> VariantNode:
        self._open += 1
        if self._open > MAX_NESTING:
            raise UserError(
                f"{self._where}{printable(self._text[start:], 40)} nests more than {MAX_NESTING} deep.",
                "Make it flatter.",
            )
        low, high, joiner = self._parse_pick_count()
        options = [self._option()]
        while self._at < len(self._text) and self._text[self._at] == "|":
            self._at += 1
            options.append(self._option())
        if self._at == len(self._text):
            raise UserError(
                f"{self._where}the brace before {printable(self._text[start + 1 :], 40)!r} is never closed.",
                r"For example {samurai|cowboy}; for the brace itself \{.",
            )
        self._at += 1
        self._open -= 1
        pick = self._make_variant(options, start)
        high = min(len(pick.options), high)
        if high > MAX_PICKS:
            raise UserError(
                f"{self._where}{printable(self._text[start : self._at], 40)} picks up to {high:,} at once; "
                f"the limit is {MAX_PICKS}.",
                f"For example {{1-{MAX_PICKS}$$a|b|c}}.",
            )
        return VariantNode(pick.options, pick.weights, min(low, high), high, joiner)

    def _make_variant(self, options: list[tuple[str, int, Node]], start: int) -> VariantNode:
        # {2$$__colour__} takes two of the list's lines, not two of one list.
        if len(options) == 1 and (alone := re.fullmatch(rf"\s*{_NAME}\s*", options[0][0])):
            return self._lists.variant(alone["name"].strip())
        return _make_variant(options, self._where + printable(self._text[start : self._at], 40))

    def _option(self) -> tuple[str, int, Node]:
        weight, self._at = _parse_weight(self._text, self._at, self._where)
        start = self._at
        series = self.series(inside=True)
        return self._text[start : self._at], weight, series

    def _parse_pick_count(self) -> tuple[int, int, str]:
        """Parse the least and the most options to pick, and the separator between them."""
        match = _PICK_COUNT.match(self._text, self._at)
        if not match:
            return 1, 1, ""
        self._at = match.end()
        joiner = DEFAULT_SEPARATOR
        if between := _SEPARATOR.match(self._text, self._at):
            self._at = between.end()
            joiner = between[1]
        if match["exactly"]:
            return int(match["exactly"]), int(match["exactly"]), joiner
        low, high = int(match["low"] or 1), int(match["high"] or 10**9)
        return min(low, high), max(low, high), joiner


def _parse_weight(text: str, at: int, where: str = "") -> tuple[int, int]:
    """Parse a weight. Returns it in millionths, and where the option itself begins."""
    match = _WEIGHT.match(text, at)
    if not match:
        return _UNIT, at
    if float(match[1]) > _MAX_WEIGHT:
        raise UserError(f"{where}{printable(match[0], 40)} weighs too much.", f"The limit is {_MAX_WEIGHT:,}::.")
    whole, _, fraction = match[1].partition(".")
    return int(whole or 0) * _UNIT + int(fraction[:6].ljust(6, "0")), match.end()


def _make_variant(options: list[tuple[str, int, Node]], what: str) -> VariantNode:
    """Make a choice of the options (as written, weight, tree). Equal options are joined and their weights added."""
    weights: dict[str, int] = {}
    trees: dict[str, Node] = {}
    for text, weight, tree in options:
        if weight:
            weights[text] = weights.get(text, 0) + weight
            trees.setdefault(text, tree)
    if not trees:
        raise UserError(f"All options of {what} have the weight 0.", "For example {2::often|seldom}.")
    return VariantNode(list(trees.values()), list(weights.values()))
