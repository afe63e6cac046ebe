"""Parse what is inside angle brackets: a concept or a blend, strengths, and the steps at which it acts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UserError, printable
from .ast import ConceptRef, Mention
from .block_weights import format_blocks
from .concept_options import (
    MAX_STRENGTH,
    MINUS,
    NUMBER,
    REFERENCE_OPTIONS,
    collect_options,
    parse_blocks,
    parse_guidance,
    parse_number,
    parse_ramp,
    parse_region,
    read_a1111_blocks,
)
from .tokens import Token, to_token_word

MAX_BLEND = 8  # concepts in one pair of brackets

BRACKETED = re.compile(r"(?<!\\)<(?=\S)([^<>]*)>")  # a concept in a prompt, unless a backslash escapes it
_WANTS_SIGN = re.compile(r"[:=,]\s*(?:[+-]?[0-9.]+e)?\Z", re.I)  # the end of what a number with a + may continue
_SEGMENT = re.compile(r"([^{}]*+)([{}]?)")  # a text, and the brace after it
_OPTION = re.compile(r"[^{}=]*=")
_A1111_NETWORK = re.compile(
    r"\s*(lora|lyco|lycoris|hypernet)\s*:\s*([^:]*)(?::\s*([^:]*))?", re.I
)  # A1111's extra networks


@dataclass(frozen=True)
class WrittenConcept:
    """One concept of a reference as written. strength: None if there is none; options: names in lower case, values."""

    word: str
    strength: str | None
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        strength = [] if self.strength is None else [self.strength]
        return ":".join([self.word, *strength, *(f"{name}={value}" for name, value in self.options)])


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
    if ":" in window:
        raise UserError(
            f"<{printable(inner)}> has something after its window; after @ come two numbers from 0 to 1, and no more.",
            "Options stand before the window: <me/duck:0.8:at=left@0-0.6>.",
        )
    start, end = _parse_window(inner, window) if at else (0.0, 1.0)
    written = [split_part(part) for part in parts]
    mentions = _parse_blend(inner, written) if len(written) > 1 else (_parse_mention(inner, written[0], 1.0),)
    shared = collect_options(
        inner, (option for part in written for option in part.options if option[0] in REFERENCE_OPTIONS)
    )
    return ConceptRef(mentions, start, end, guidance=parse_guidance(inner, shared), region=parse_region(inner, shared))


def cut_word(inner: str) -> tuple[list[str], str, str]:
    """Split a reference into its concepts with strengths and options, as written; "@" before a window; and the window.

    A + before a number, or in its exponent, joins nothing: `<me/duck:+1+me/cat:1e+0>` has two parts.
    """
    blend, at, window = inner.partition("@")
    parts: list[str] = []
    for part in blend.split("+"):
        if parts and _WANTS_SIGN.search(parts[-1]):
            parts[-1] += f"+{part}"
        else:
            parts.append(part)
    return parts, at, window


def _split_at_colons(part: str) -> list[str]:
    """Split at the colons that are not inside alternatives: those after which no brace closes before one opens."""
    pieces = [""]
    for text, brace in _SEGMENT.findall(part):
        first, *others = [text] if brace == "}" else text.split(":")
        pieces[-1] += first
        pieces += others
        pieces[-1] += brace
    return pieces


def split_part(part: str) -> WrittenConcept:
    """Split one concept of a reference, `me/duck:0.8:at=left`, also of a template, `me/duck:{0.5|1}`.

    Two strengths become one text, which is no number.
    """
    word, *items = _split_at_colons(part)
    strengths = [item.strip() for item in items if not _OPTION.match(item)]
    pairs = (item.partition("=") for item in items if _OPTION.match(item))
    return WrittenConcept(
        word.strip(),
        ":".join(strengths) if strengths else None,
        tuple((name.strip().lower(), value.strip()) for name, _, value in pairs),
    )


def read_strength(text: str) -> float | None:
    """Parse a strength; None for anything else."""
    value = parse_number(text)
    return value if value is not None and abs(value) <= MAX_STRENGTH else None


def _parse_blend(inner: str, parts: list[WrittenConcept]) -> tuple[Mention, ...]:
    if len(parts) > MAX_BLEND:
        raise UserError(f"<{printable(inner)}> blends {len(parts)} concepts.", f"A blend holds up to {MAX_BLEND}.")
    if len({part.strength is None for part in parts}) > 1:
        raise UserError(
            f"In <{printable(inner)}> some concepts have a strength and some have none.",
            "Give one to each, <me/duck:0.7+me/cat:0.3>, or to none, <me/duck+me/cat>.",
        )
    mentions = tuple(_parse_mention(inner, part, 1 / len(parts)) for part in parts)
    if len({mention.token for mention in mentions}) < len(mentions):
        raise UserError(f"<{printable(inner)}> names a concept twice.", "Once is enough: <me/duck:0.7+me/cat:0.3>.")
    return mentions


def _parse_mention(inner: str, part: WrittenConcept, otherwise: float) -> Mention:
    """Parse one concept. otherwise: the strength if none is written."""
    # Prompts may use capitals, since people write them quickly; only names of new concepts must be lower case.
    token = Token.parse(part.word.lower())
    strength = otherwise if part.strength is None else _parse_strength(inner, part.strength)
    options = collect_options(inner, part.options)
    return Mention(token, strength, parse_blocks(inner, options), parse_ramp(inner, options))


def _parse_strength(inner: str, text: str) -> float:
    value = read_strength(text)
    if value is None:
        raise UserError(
            f"The strength in <{printable(inner)}> must be a number from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}.",
            "Options have names: <me/duck:0.8:at=left>."
            if ":" in text
            else "For example <me/duck:0.8>, or <me/age:-2> for the opposite.",
        )
    return value


def _parse_window(inner: str, text: str) -> tuple[float, float]:
    start, dash, end = (part.strip() for part in text.translate(MINUS).partition("-"))
    if dash and NUMBER.fullmatch(start) and NUMBER.fullmatch(end) and float(start) < float(end) <= 1:
        return float(start), float(end)
    raise UserError(
        f"What follows @ in <{printable(inner)}> must be two numbers from 0 to 1, the smaller first.",
        "For example <me/duck@0-0.6> for the first steps, <me/ink:0.7@0.4-1> for the rest.",
    )


def _a1111_network_error(inner: str, kind: str, name: str, strength: str | None) -> UserError:
    if kind.lower() == "hypernet":
        return UserError(f"<{printable(inner)}> asks for a hypernetwork, which is not supported.", "Leave it out.")
    token = f"me/{to_token_word(name) or 'my-style'}"
    value = parse_number(strength or "")
    value = 1.0 if value is None else max(-MAX_STRENGTH, min(value, MAX_STRENGTH))
    number, blocks = "" if value == 1 else f":{value:g}", read_a1111_blocks(inner)
    options = f":{format_blocks(blocks)}" if blocks else ""
    return UserError(
        f"<{printable(inner)}> is how A1111 loads a LoRA.",
        f"Import its file once, sdpersonal concepts import FILE --as '<{token}>', then write "
        f"<{token}{number}{options}>.",
    )
