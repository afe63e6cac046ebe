"""Resolve a template's alternatives before the prompt is parsed: at random by a seed, or all combinations in order.

    a {red|2::blue} car, {2$$ and $$rain|fog|snow}, painted by __painters__

All functions are pure: they depend on the template, the lists' lines and the number. They raise UserError for a
template that cannot be parsed, a list that does not exist, or a prompt that would become too long.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import UserError, printable
from .combinatorics import Node, SeededChoice, count_expansions, nth_expansion, sample_expansion
from .parser import MAX_PROMPT
from .templates import has_alternatives, parse_template
from .wildcards import Wildcards

__all__ = ["Wildcards", "all_prompts", "count_prompts", "has_alternatives", "nth_prompt", "sample_prompt"]


def sample_prompt(template: str, seed: int, wildcards: Wildcards) -> str:
    """Sample one of the template's prompts by the weights. Choices in different places are independent."""
    return _check_length(sample_expansion(_parse(template, wildcards), SeededChoice(seed)))


def count_prompts(template: str, wildcards: Wildcards) -> int:
    """Count the prompts of `all_prompts`: combinations of choices, of which two may read the same ({a|aa}{aa|a})."""
    return count_expansions(_parse(template, wildcards))


def all_prompts(template: str, wildcards: Wildcards) -> Iterator[str]:
    """Yield all prompts, the last choice changing fastest. Options of weight 0 are left out; others ignore weights."""
    tree = _parse(template, wildcards)
    return (_check_length(nth_expansion(tree, i)) for i in range(count_expansions(tree)))


def nth_prompt(template: str, i: int, wildcards: Wildcards) -> str:
    """Return the i-th prompt of `all_prompts`, from 0, without computing those before it."""
    tree = _parse(template, wildcards)
    if not 0 <= i < count_expansions(tree):
        raise UserError(f"{printable(template)} has {count_expansions(tree):,} prompts; there is no number {i + 1:,}.")
    return _check_length(nth_expansion(tree, i))


def _parse(template: str, wildcards: Wildcards) -> Node:
    if len(template) > MAX_PROMPT:
        raise UserError(
            f"The prompt has {len(template):,} characters; the limit is {MAX_PROMPT:,}.",
            "Shorten it, or put its alternatives in a list: __name__.",
        )
    return parse_template(template, wildcards)


def _check_length(prompt: str) -> str:
    if len(prompt) > MAX_PROMPT:
        raise UserError(
            f"With its alternatives the prompt has {len(prompt):,} characters; the limit is {MAX_PROMPT:,}.",
            "Shorten it, or the lists that it uses.",
        )
    return prompt
