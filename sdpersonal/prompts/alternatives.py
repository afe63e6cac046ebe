"""Alternatives, chosen before a prompt is read: at random by a seed, or one combination after the other.

    a {red|2::blue} car, {2$$ and $$rain|fog|snow}, painted by __painters__

All functions are pure: of the template, the lists' lines and the number. They raise PersonalError for a template that
cannot be read, a list that is not there, or a prompt that would become too long.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import PersonalError, show
from .combinatorics import Dice, Node, count_of, drawn_of, nth_of
from .parser import MAX_PROMPT
from .templates import has_alternatives, read_template
from .wildcards import Wildcards

__all__ = ["Wildcards", "choose", "count", "every", "has_alternatives", "nth"]


def choose(template: str, seed: int, wildcards: Wildcards) -> str:
    """One of its prompts, drawn by the weights. What is chosen in one place says nothing of another."""
    return _short_enough(drawn_of(_read(template, wildcards), Dice(seed)))


def count(template: str, wildcards: Wildcards) -> int:
    """How many prompts `every` yields: combinations of choices, of which two may read the same ({a|aa}{aa|a})."""
    return count_of(_read(template, wildcards))


def every(template: str, wildcards: Wildcards) -> Iterator[str]:
    """All its prompts, the last choice changing fastest; weights do not matter, but that those of 0 are left out."""
    tree = _read(template, wildcards)
    return (_short_enough(nth_of(tree, i)) for i in range(count_of(tree)))


def nth(template: str, i: int, wildcards: Wildcards) -> str:
    """The i-th of `every`, from 0, without those before it."""
    tree = _read(template, wildcards)
    if not 0 <= i < count_of(tree):
        raise PersonalError(f"{show(template)} has {count_of(tree):,} prompts; there is no number {i + 1:,}.")
    return _short_enough(nth_of(tree, i))


def _read(template: str, wildcards: Wildcards) -> Node:
    if len(template) > MAX_PROMPT:
        raise PersonalError(
            f"The prompt has {len(template):,} characters; I read up to {MAX_PROMPT:,}.",
            "Shorten it, or put its alternatives in a list: __name__.",
        )
    return read_template(template, wildcards)


def _short_enough(prompt: str) -> str:
    if len(prompt) > MAX_PROMPT:
        raise PersonalError(
            f"With its alternatives the prompt has {len(prompt):,} characters; I read up to {MAX_PROMPT:,}.",
            "Shorten it, or the lists that it uses.",
        )
    return prompt
