"""What stands in angle brackets: a concept or a blend, strengths, and the part of the sampling in which it acts."""

from __future__ import annotations

import re

from ..errors import PersonalError, show
from .pieces import Mention, Word
from .tokens import Token

MAX_STRENGTH = 2.0
MAX_BLEND = 8  # concepts in one pair of brackets

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_OTHERS = re.compile(r"\s*(lora|lyco|lycoris|hypernet)\s*:\s*([^:]*)(?::\s*([0-9.]+))?", re.I)  # A1111's extra networks


def read_word(inner: str) -> Word:
    """`me/duck:0.7+me/cat:0.3@0-0.6`, what stands between the brackets. Raises PersonalError with one that works."""
    if other := _OTHERS.match(inner):
        raise _other_network(inner, *other.groups())
    blend, at, window = inner.partition("@")
    parts = blend.split("+")
    if at and "+" in window:
        raise PersonalError(
            f"<{show(inner)}> has its @ in the middle; a blend has one for all.",
            "At the end: <me/duck:0.7+me/cat:0.3@0-0.6>.",
        )
    start, end = _window(inner, window) if at else (0.0, 1.0)
    return Word(_blend(inner, parts) if len(parts) > 1 else (_mention(inner, parts[0], 1.0),), start, end)


def _blend(inner: str, parts: list[str]) -> tuple[Mention, ...]:
    if len(parts) > MAX_BLEND:
        raise PersonalError(f"<{show(inner)}> blends {len(parts)} concepts.", f"I blend up to {MAX_BLEND}.")
    if len({":" in part for part in parts}) > 1:
        raise PersonalError(
            f"In <{show(inner)}> some concepts have a strength and some have none.",
            "Give one to each, <me/duck:0.7+me/cat:0.3>, or to none, <me/duck+me/cat>.",
        )
    mentions = tuple(_mention(inner, part, 1 / len(parts)) for part in parts)
    if len({mention.token for mention in mentions}) < len(mentions):
        raise PersonalError(f"<{show(inner)}> names a concept twice.", "Once is enough: <me/duck:0.7+me/cat:0.3>.")
    return mentions


def _mention(inner: str, part: str, otherwise: float) -> Mention:
    """otherwise: the strength if none is written."""
    word, colon, strength = part.partition(":")
    # Capitals are folded here, where people write quickly; only names given to new concepts must be lower case.
    token = Token.parse(word.lower())
    return Mention(token, _strength(inner, strength) if colon else otherwise)


def _strength(inner: str, text: str) -> float:
    if _NUMBER.fullmatch(text.strip()):
        value = float(text)
        if value <= MAX_STRENGTH:
            return value
    raise PersonalError(
        f"The strength in <{show(inner)}> must be a number from 0 to {MAX_STRENGTH:g}.", "For example <me/duck:0.8>."
    )


def _window(inner: str, text: str) -> tuple[float, float]:
    start, dash, end = (part.strip() for part in text.partition("-"))
    if dash and _NUMBER.fullmatch(start) and _NUMBER.fullmatch(end) and float(start) < float(end) <= 1:
        return float(start), float(end)
    raise PersonalError(
        f"What follows @ in <{show(inner)}> must be two numbers from 0 to 1, the smaller first.",
        "For example <me/duck@0-0.6> for the beginning of the drawing, <me/ink:0.7@0.4-1> for the rest.",
    )


def _other_network(inner: str, kind: str, name: str, strength: str | None) -> PersonalError:
    if kind.lower() == "hypernet":
        return PersonalError(f"<{show(inner)}> asks for a hypernetwork; I have none.", "Leave it out.")
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64].strip("-")
    token = f"me/{plain or 'my-style'}"
    wanted = min(float(strength), MAX_STRENGTH) if strength and _NUMBER.fullmatch(strength) else 1.0
    return PersonalError(
        f"<{show(inner)}> is how A1111 loads a LoRA.",
        f"Import its file once, sdpersonal concepts import FILE --as '<{token}>', then write "
        f"<{token}{'' if wanted == 1 else f':{wanted:g}'}>.",
    )
