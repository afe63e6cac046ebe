"""Change one thing in a prompt: a word, a concept, a concept's strength or window.

Prompts are edited as text, before alternatives are chosen, so that the text around the change stays as typed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

from ...errors import UserError
from ...prompts import Token
from ...prompts.concept_syntax import BRACKETED, cut_word

PLACEHOLDER = "{}"
"""Placeholder in a prompt for what an axis puts there."""

_ConceptParts = tuple[list[tuple[str, str]], str]  # [(word, strength as written or "")], window as written or ""


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

    def change(parts: list[tuple[str, str]], window: str) -> str:
        number, other = f"{strength:g}", f"{1 / len(parts):g}"  # of a blend without strengths
        return _format_brackets(
            [(word, number if _is_same_concept(word, token) else old or other) for word, old in parts], window
        )

    return _edit_mentions(prompt, token, change)


def set_window(prompt: str, token: Token, window: str) -> str:
    """Set the window, `<me/duck:0.8@0.4-1>`, in every mention of the token. window: as written after the @."""
    return _edit_mentions(prompt, token, lambda parts, _: _format_brackets(parts, window))


def replace_concept(prompt: str, token: Token, other: str) -> str:
    """Replace a concept by another, with the same strength and window; or by plain words, which have neither.

    other: a token in brackets, optionally with its own strength or window, or words.
    """
    new, new_window = _split_brackets(other[1:-1]) if BRACKETED.fullmatch(other) else ([(other, "")], "")

    def change(parts: list[tuple[str, str]], window: str) -> str:
        if not BRACKETED.fullmatch(other) and len(parts) == 1:
            return other
        edited: list[tuple[str, str]] = []
        for word, strength in parts:
            replaced = (
                [(part, value or strength) for part, value in new]
                if _is_same_concept(word, token)
                else [(word, strength)]
            )
            edited += replaced
        return _format_brackets(edited, new_window or window)

    return _edit_mentions(prompt, token, change)


def mentions_token(prompt: str, token: Token) -> bool:
    return any(
        _is_same_concept(word, token)
        for bracket in BRACKETED.finditer(prompt)
        for word, _ in _split_brackets(bracket[1])[0]
    )


def _edit_mentions(prompt: str, token: Token, change: Callable[[list[tuple[str, str]], str], str]) -> str:
    def edit(bracket: re.Match[str]) -> str:
        parts, window = _split_brackets(bracket[1])
        return change(parts, window) if any(_is_same_concept(word, token) for word, _ in parts) else bracket[0]

    return BRACKETED.sub(edit, prompt)


def _split_brackets(inner: str) -> _ConceptParts:
    written, _, window = cut_word(inner)
    pairs = [part.partition(":") for part in written]
    return [(word.strip(), strength.strip()) for word, _, strength in pairs], window.strip()


def _format_brackets(parts: list[tuple[str, str]], window: str) -> str:
    mix = "+".join(f"{word}:{strength}" if strength else word for word, strength in parts)
    return f"<{mix}@{window}>" if window else f"<{mix}>"


def _is_same_concept(word: str, token: Token) -> bool:
    """Return whether a token as written and `token` can be the same concept: either may omit owner or version."""
    with suppress(UserError):
        written = Token.parse(word.lower())
        pairs = (written.owner, token.owner), (written.version, token.version)
        return written.name == token.name and all(None in pair or pair[0] == pair[1] for pair in pairs)
    return False
