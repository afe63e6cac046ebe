"""Change one thing in a prompt: a word, a concept, a concept's strength, window or region.

Prompts are edited as text, before alternatives are chosen, so that the text around the change stays as typed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count

from ...errors import UserError
from ...prompts import Token
from ...prompts.concept_options import REFERENCE_OPTIONS
from ...prompts.concept_syntax import BRACKETED, WrittenConcept, cut_word, split_part

PLACEHOLDER = "{}"
"""Placeholder in a prompt for what an axis puts there."""

_ConceptParts = tuple[list[WrittenConcept], str]  # concepts, window as written or ""


def replace_words(prompt: str, target: str, words: str) -> str:
    """Replace `target` by `words` wherever it is a whole word; inside a token only if it names one."""
    before = r"(?<!\w)" if re.match(r"\w", target) else ""
    after = r"(?!\w)" if re.search(r"\w$", target) else ""
    pattern = re.compile(before + re.escape(target) + after)
    if "<" in target:
        return pattern.sub(lambda _: words, prompt)
    pieces = re.split(r"((?<!\\)<(?=\S)[^<>]*>)", prompt)
    return "".join(piece if i % 2 else pattern.sub(lambda _: words, piece) for i, piece in enumerate(pieces))


def set_strength(prompt: str, token: Token, strength: float) -> str:
    """Set the strength, `<me/duck:0.5@0-0.6>`, in every mention of the token, alone or in a blend."""

    def change(parts: list[WrittenConcept], window: str) -> str:
        number, other = f"{strength:g}", f"{1 / len(parts):g}"  # of a blend without strengths
        strengths = [number if _is_same_concept(part.word, token) else part.strength or other for part in parts]
        return _format_brackets(
            [replace(part, strength=value) for part, value in zip(parts, strengths, strict=True)], window
        )

    return _edit_mentions(prompt, token, change)


def set_window(prompt: str, token: Token, window: str) -> str:
    """Set the window, `<me/duck:0.8@0.4-1>`, in every mention of the token. window: as written after the @."""
    return _edit_mentions(prompt, token, lambda parts, _: _format_brackets(parts, window))


def set_region(prompt: str, token: Token, region: str, number: int | None = None) -> str:
    """Set where the concept is to be, `<me/duck:at=left>` or `<me/duck:box=0.5,0.2,1,0.9>`, in every mention of the
    token.

    region: as written after the equals sign; "": anywhere. number: of the only brackets to change, counting all of the
    prompt from 0.
    """

    def change(parts: list[WrittenConcept], window: str) -> str:
        options = [tuple(option for option in part.options if _option_group(option[0]) != "at") for part in parts]
        if region:
            options[-1] = (*options[-1], ("box" if "," in region else "at", region))
        edited = [replace(part, options=remaining) for part, remaining in zip(parts, options, strict=True)]
        return _format_brackets(edited, window)

    return _edit_mentions(prompt, token, change, number)


def replace_concept(prompt: str, token: Token, other: str) -> str:
    """Replace a concept by another, with the same strength, options and window; or by plain words, which have none.

    other: a token in brackets, optionally with its own strength, options or window, or words.
    """
    new, new_window = (
        _split_brackets(other[1:-1]) if BRACKETED.fullmatch(other) else ([WrittenConcept(other, None)], "")
    )

    def change(parts: list[WrittenConcept], window: str) -> str:
        if not BRACKETED.fullmatch(other) and len(parts) == 1:
            return other
        edited: list[WrittenConcept] = []
        for part in parts:
            edited += _inherit(new, part) if _is_same_concept(part.word, token) else [part]
        return _format_brackets(edited, new_window or window)

    return _edit_mentions(prompt, token, change)


def _inherit(new: list[WrittenConcept], old: WrittenConcept) -> list[WrittenConcept]:
    """Return the concepts that replace `old`, with its strength and options where they have none of their own."""
    taken = {_option_group(name) for part in new for name, _ in part.options}
    inherited = []
    for i, part in enumerate(new):
        own = {_option_group(name) for name, _ in part.options}
        options = [
            (name, value)
            for name, value in old.options
            # Those of the whole reference must be there once.
            if _option_group(name) not in (taken if name in REFERENCE_OPTIONS else own)
            and not (i and name in REFERENCE_OPTIONS)
        ]
        inherited.append(replace(part, strength=part.strength or old.strength, options=(*options, *part.options)))
    return inherited


def _option_group(name: str) -> str:
    """Return a common name for options that exclude each other."""
    return {"box": "at", **dict.fromkeys(("in", "mid", "out", "base"), "lbw")}.get(name, name)


def mentions_token(prompt: str, token: Token) -> bool:
    return any(
        _is_same_concept(part.word, token)
        for bracket in BRACKETED.finditer(prompt)
        for part in _split_brackets(bracket[1])[0]
    )


def _edit_mentions(
    prompt: str, token: Token, change: Callable[[list[WrittenConcept], str], str], number: int | None = None
) -> str:
    """Change the brackets that name the token. number: of the only ones to change among all brackets."""
    numbers = count()

    def edit(bracket: re.Match[str]) -> str:
        parts, window = _split_brackets(bracket[1])
        is_meant = next(numbers) == number or number is None
        return (
            change(parts, window)
            if is_meant and any(_is_same_concept(part.word, token) for part in parts)
            else bracket[0]
        )

    return BRACKETED.sub(edit, prompt)


def _split_brackets(inner: str) -> _ConceptParts:
    written, _, window = cut_word(inner)
    return [split_part(part) for part in written], window.strip()


def _format_brackets(parts: list[WrittenConcept], window: str) -> str:
    mix = "+".join(map(str, parts))
    return f"<{mix}@{window}>" if window else f"<{mix}>"


def _is_same_concept(word: str, token: Token) -> bool:
    """Return whether a token as written and `token` can be the same concept: either may omit owner or version."""
    with suppress(UserError):
        written = Token.parse(word.lower())
        pairs = (written.owner, token.owner), (written.version, token.version)
        return written.name == token.name and all(None in pair or pair[0] == pair[1] for pair in pairs)
    return False
