"""Count, index and sample the expansions of a template, a tree of texts and choices, without enumerating them.

A node is a text, a `SequenceNode` (parts in order) or a `VariantNode` (a choice of options). Counts are exact integers,
however large; the n-th expansion is found by division, so that one of 10^30 costs no more than one of ten.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import comb, factorial, prod


@dataclass(frozen=True)
class SeededChoice:
    """Random numbers as a function of a seed and a place in the template: the same on every machine and Python."""

    seed: int
    place: str = ""

    def at(self, step: int) -> SeededChoice:
        return SeededChoice(self.seed, f"{self.place}.{step}")

    def randbelow(self, n: int, turn: int = 0) -> int:
        """Return an integer from 0 to n - 1, independent for each turn."""
        digest = hashlib.sha256(f"alternatives:{self.seed}:{self.place}:{turn}".encode()).digest()
        return int.from_bytes(digest, "big") * n >> 256  # n is far below 2^256: no number is favoured


@dataclass(frozen=True, eq=False)
class SequenceNode:
    """A sequence of texts and choices."""

    parts: Sequence[Node]

    @cached_property
    def count(self) -> int:
        return prod(count_expansions(part) for part in self.parts)

    @cached_property
    def depth(self) -> int:
        return max(map(nesting_depth, self.parts), default=0)

    @cached_property
    def max_choices(self) -> int:
        return sum(map(max_choices, self.parts))

    def nth(self, i: int) -> str:
        """Return the i-th expansion; the last choice changes fastest."""
        texts = []
        for part in reversed(self.parts):
            i, inner = divmod(i, count_expansions(part))
            texts.append(nth_expansion(part, inner))
        return "".join(reversed(texts))

    def sample(self, dice: SeededChoice) -> str:
        # Only choices are numbered, so that changing the words around them does not change what is chosen.
        choices = iter(range(len(self.parts)))
        return "".join(part if isinstance(part, str) else part.sample(dice.at(next(choices))) for part in self.parts)


@dataclass(frozen=True, eq=False)
class VariantNode:
    """A choice of `min_picks` to `max_picks` of the options, none twice, in any order.

    weights: how often each option is sampled, relative to the others, as integers above 0.
    """

    options: Sequence[Node]
    weights: Sequence[int]
    min_picks: int = 1
    max_picks: int = 1
    separator: str = ""

    @cached_property
    def count(self) -> int:
        return sum(self._count_orders(k) for k in range(self.min_picks, self.max_picks + 1))

    @cached_property
    def depth(self) -> int:
        return 1 + max(map(nesting_depth, self.options))

    @cached_property
    def max_choices(self) -> int:
        """Return the most choices that one expansion makes."""
        return self.max_picks * (1 + max(map(max_choices, self.options)))

    @cached_property
    def _counts(self) -> list[int]:
        return [count_expansions(option) for option in self.options]

    @cached_property
    def _count_ends(self) -> list[int]:
        return list(accumulate(self._counts))

    @cached_property
    def _weight_ends(self) -> list[int]:
        return list(accumulate(self.weights))

    @cached_property
    def _ways(self) -> list[int]:
        """Return at index k in how many ways k options can be taken and expanded, ignoring order (the k-th elementary
        symmetric polynomial of their counts). Options with equal counts are grouped: there are few counts."""
        ways = [1] + [0] * self.max_picks
        for count, times in Counter(self._counts).items():
            same_count = [comb(times, k) * count**k for k in range(self.max_picks + 1)]
            ways = [sum(ways[j] * same_count[k - j] for j in range(k + 1)) for k in range(self.max_picks + 1)]
        return ways

    def _count_orders(self, k: int) -> int:
        return factorial(k) * self._ways[k]

    def nth(self, i: int) -> str:
        """Return the i-th expansion: fewer options first, then in option order, the last one changing fastest."""
        k = self.min_picks
        while i >= self._count_orders(k):
            i -= self._count_orders(k)
            k += 1
        texts: list[str] = []
        taken: set[int] = set()
        ways = self._ways
        for left in range(k, 0, -1):
            option, i, continuations = self._first(i, left, taken, ways)
            inner, i = divmod(i, continuations)
            texts.append(nth_expansion(self.options[option], inner))
            taken.add(option)
            ways = _remove_option(ways, self._counts[option])
        return self.separator.join(texts)

    def _first(self, i: int, left: int, taken: set[int], ways: list[int]) -> tuple[int, int, int]:
        """Find the first option of the i-th order of `left` more options. Returns the option, the order's number among
        those with that first option, and in how many ways each expansion of the option can continue."""
        if left == 1 and not taken:  # the usual case, and lists are long
            option = bisect_right(self._count_ends, i)
            return option, i - self._count_ends[option] + self._counts[option], 1
        continuations: dict[int, int] = {}  # by the first option's count
        for option, count in enumerate(self._counts):
            if option in taken:
                continue
            if count not in continuations:
                continuations[count] = factorial(left - 1) * _remove_option(ways, count)[left - 1]
            if i < count * continuations[count]:
                return option, i, continuations[count]
            i -= count * continuations[count]
        raise IndexError(i)

    def sample(self, dice: SeededChoice) -> str:
        how_many = self.min_picks + dice.randbelow(self.max_picks - self.min_picks + 1)
        taken: list[int] = []
        for turn in range(1, how_many + 1):
            at = dice.randbelow(self._weight_ends[-1] - sum(self.weights[option] for option in taken), turn)
            for option in sorted(taken):  # skip the taken ones
                if at >= self._weight_ends[option] - self.weights[option]:
                    at += self.weights[option]
            taken.append(bisect_right(self._weight_ends, at))
        return self.separator.join(sample_expansion(self.options[option], dice.at(option)) for option in taken)


Node = str | SequenceNode | VariantNode


def _remove_option(ways: list[int], count: int) -> list[int]:
    """Return the same polynomials without one option of that count."""
    fewer = [1]
    for way in ways[1:]:
        fewer.append(way - count * fewer[-1])
    return fewer


def count_expansions(node: Node) -> int:
    return 1 if isinstance(node, str) else node.count


def nesting_depth(node: Node) -> int:
    """Return how deeply choices are nested."""
    return 0 if isinstance(node, str) else node.depth


def max_choices(node: Node) -> int:
    return 0 if isinstance(node, str) else node.max_choices


def nth_expansion(node: Node, i: int) -> str:
    return node if isinstance(node, str) else node.nth(i)


def sample_expansion(node: Node, dice: SeededChoice) -> str:
    return node if isinstance(node, str) else node.sample(dice)
