"""Syntax inside angle brackets: a concept or a blend, strengths, and the part of the sampling in which it acts."""

from __future__ import annotations

import re

from ..errors import UserError, printable
from .ast import ConceptRef, Mention
from .tokens import Token

MAX_STRENGTH = 5.0  # also the limit below 0: sliders work in both directions
MAX_BLEND = 8  # concepts in one pair of brackets

BRACKETED = re.compile(r"(?<!\\)<(?=\S)([^<>]*)>")  # a concept in a prompt, unless a backslash escapes it
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_STRENGTH = re.compile(rf"[+-]?(?:{_NUMBER.pattern})(?:e[+-]?[0-9]{{1,3}})?", re.I)
_MINUS = str.maketrans(
    dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-")
)  # what keyboards and word processors insert for a minus
_WANTS_SIGN = re.compile(r"[^:]*:\s*(?:[+-]?[0-9.]+e)?", re.I)  # a strength that a + may continue
_A1111_NETWORK = re.compile(
    r"\s*(lora|lyco|lycoris|hypernet)\s*:\s*([^:]*)(?::\s*([^:]*))?", re.I
)  # A1111's extra networks


def parse_concept_ref(inner: str) -> ConceptRef:
    """Parse the text between the brackets, `me/duck:0.7+me/cat:0.3@0-0.6`. Raises UserError with a working example."""
    if other := _A1111_NETWORK.match(inner):
        raise _a1111_network_error(inner, *other.groups())
    parts, at, window = cut_word(inner)
    if at and "+" in window:
        raise UserError(
            f"<{printable(inner)}> has its @ in the middle; a blend has one for all.",
            "At the end: <me/duck:0.7+me/cat:0.3@0-0.6>.",
        )
    start, end = _parse_window(inner, window) if at else (0.0, 1.0)
    return ConceptRef(
        _parse_blend(inner, parts) if len(parts) > 1 else (_parse_mention(inner, parts[0], 1.0),), start, end
    )


def cut_word(inner: str) -> tuple[list[str], str, str]:
    """Split a reference into its concepts with their strengths, as written; "@" if a window follows; and the window.

    A + before a strength, or in its exponent, joins nothing: `<me/duck:+1+me/cat:1e+0>` has two parts.
    """
    blend, at, window = inner.partition("@")
    parts: list[str] = []
    for part in blend.split("+"):
        if parts and _WANTS_SIGN.fullmatch(parts[-1]):
            parts[-1] += f"+{part}"
        else:
            parts.append(part)
    return parts, at, window


def read_strength(text: str) -> float | None:
    """Parse a strength as people write it, `-1.5`, `+1`, `.5`, `1e0`, with any minus sign; None for anything else."""
    plain = text.strip().translate(_MINUS)
    if not _STRENGTH.fullmatch(plain):
        return None
    value = float(plain) + 0.0  # turns -0.0 into 0.0
    return value if abs(value) <= MAX_STRENGTH else None


def _parse_blend(inner: str, parts: list[str]) -> tuple[Mention, ...]:
    if len(parts) > MAX_BLEND:
        raise UserError(f"<{printable(inner)}> blends {len(parts)} concepts.", f"A blend holds up to {MAX_BLEND}.")
    if len({":" in part for part in parts}) > 1:
        raise UserError(
            f"In <{printable(inner)}> some concepts have a strength and some have none.",
            "Give one to each, <me/duck:0.7+me/cat:0.3>, or to none, <me/duck+me/cat>.",
        )
    mentions = tuple(_parse_mention(inner, part, 1 / len(parts)) for part in parts)
    if len({mention.token for mention in mentions}) < len(mentions):
        raise UserError(f"<{printable(inner)}> names a concept twice.", "Once is enough: <me/duck:0.7+me/cat:0.3>.")
    return mentions


def _parse_mention(inner: str, part: str, otherwise: float) -> Mention:
    """Parse one concept. otherwise: the strength if none is written."""
    word, colon, strength = part.partition(":")
    # Prompts may use capitals, since people write them quickly; only names of new concepts must be lower case.
    token = Token.parse(word.lower())
    return Mention(token, _parse_strength(inner, strength) if colon else otherwise)


def _parse_strength(inner: str, text: str) -> float:
    value = read_strength(text)
    if value is None:
        raise UserError(
            f"The strength in <{printable(inner)}> must be a number from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}.",
            "For example <me/duck:0.8>, or <me/age:-2> for the opposite.",
        )
    return value


def _parse_window(inner: str, text: str) -> tuple[float, float]:
    start, dash, end = (part.strip() for part in text.translate(_MINUS).partition("-"))
    if dash and _NUMBER.fullmatch(start) and _NUMBER.fullmatch(end) and float(start) < float(end) <= 1:
        return float(start), float(end)
    raise UserError(
        f"What follows @ in <{printable(inner)}> must be two numbers from 0 to 1, the smaller first.",
        "For example <me/duck@0-0.6> for the first steps, <me/ink:0.7@0.4-1> for the rest.",
    )


def _a1111_network_error(inner: str, kind: str, name: str, strength: str | None) -> UserError:
    if kind.lower() == "hypernet":
        return UserError(f"<{printable(inner)}> asks for a hypernetwork, which is not supported.", "Leave it out.")
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64].strip("-")
    token = f"me/{plain or 'my-style'}"
    written = (strength or "").strip().translate(_MINUS)
    value = float(written) + 0.0 if _STRENGTH.fullmatch(written) else 1.0
    value = max(-MAX_STRENGTH, min(value, MAX_STRENGTH))
    return UserError(
        f"<{printable(inner)}> is how A1111 loads a LoRA.",
        f"Import its file once, sdpersonal concepts import FILE --as '<{token}>', then write "
        f"<{token}{'' if value == 1 else f':{value:g}'}>.",
    )
