"""Parse the options in a concept's brackets, `<me/ink:0.8:in=0.2:ramp=0.2-1>`, as A1111 writes those of its networks.

guidance, at and box belong to the whole reference, the others to one concept of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from ..errors import UserError, printable
from .ast import Region
from .block_weights import FORMS, GROUP_PRESETS, PRESETS, BlockWeights

MAX_STRENGTH = 5.0  # also the limit below 0: sliders work in both directions
MAX_GUIDANCE = 20.0
REFERENCE_OPTIONS = ("guidance", "at", "box")
REGIONS = {
    "left": Region(0.0, 0.0, 0.5, 1.0),
    "right": Region(0.5, 0.0, 1.0, 1.0),
    "top": Region(0.0, 0.0, 1.0, 0.5),
    "bottom": Region(0.0, 0.5, 1.0, 1.0),
    "center": Region(0.25, 0.25, 0.75, 0.75),
    "top-left": Region(0.0, 0.0, 0.5, 0.5),
    "top-right": Region(0.5, 0.0, 1.0, 0.5),
    "bottom-left": Region(0.0, 0.5, 0.5, 1.0),
    "bottom-right": Region(0.5, 0.5, 1.0, 1.0),
}

NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
SIGNED_NUMBER = re.compile(rf"[+-]?(?:{NUMBER.pattern})(?:e[+-]?[0-9]{{1,3}})?", re.I)
MINUS = str.maketrans(
    dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-")
)  # what keyboards and word processors insert for a minus

_GROUPS = {"in": "down", "mid": "mid", "out": "up", "base": "base"}  # option -> parameter of `BlockWeights.of_groups`
_DIGITS = 6  # after the point; more have no effect
_BLOCKS_EXAMPLE = "<me/ink:0.8:in=0.2:mid=1:out=1>"
_EXAMPLES = {  # option -> a prompt with it
    "guidance": "<me/ink:0.8:guidance=2>",
    "at": "<me/duck:at=left>",
    "box": "<me/fox:box=0.5,0.2,1,0.9>",
    **dict.fromkeys(_GROUPS, _BLOCKS_EXAMPLE),
    "lbw": "<me/ink:0.8:lbw=OUTALL>",
    "ramp": "<me/ink:0.8:ramp=0.2-1>",
}
OPTIONS = tuple(_EXAMPLES)


def collect_options(inner: str, options: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return options by name. inner: the text between the brackets. Raises UserError for unknown and repeated ones."""
    collected: dict[str, str] = {}
    for name, value in options:
        if name not in _EXAMPLES:
            similar = get_close_matches(name, OPTIONS, 1)
            raise UserError(
                f"<{printable(inner)}> has an unknown option, {printable(name, 20) or '='}.",
                (f"Did you mean {similar[0]}? " if similar else "")
                + f"Options are {', '.join(OPTIONS[:-1])} and {OPTIONS[-1]}: "
                f"{_EXAMPLES[similar[0] if similar else 'at']}.",
            )
        if name in collected:
            raise UserError(f"<{printable(inner)}> has the option {name} twice.", f"Once: {_EXAMPLES[name]}.")
        collected[name] = value
    return collected


def parse_guidance(inner: str, options: Mapping[str, str]) -> float | None:
    if "guidance" not in options:
        return None
    value = read_number(options["guidance"], 0, MAX_GUIDANCE)
    if value is None:
        raise _option_error(inner, "guidance", f"must be a number from 0 to {MAX_GUIDANCE:g}")
    return value


def parse_region(inner: str, options: Mapping[str, str]) -> Region | None:
    if "at" in options and "box" in options:
        raise UserError(
            f"<{printable(inner)}> has both at and box.", f"Give one of them: {_EXAMPLES['at']} or {_EXAMPLES['box']}."
        )
    if "at" in options:
        name = options["at"].lower().replace("centre", "center")
        if name not in REGIONS:
            raise _option_error(inner, "at", f"must be {', '.join(list(REGIONS)[:-1])} or {list(REGIONS)[-1]}")
        return REGIONS[name]
    if "box" not in options:
        return None
    sides = [read_number(text, 0, 1) for text in options["box"].split(",")]
    if len(sides) == 4 and all(side is not None for side in sides):
        region = Region(*(side for side in sides if side is not None))
        if region.left < region.right and region.top < region.bottom:
            return region
    raise _option_error(
        inner, "box", "must be left,top,right,bottom as fractions of the image, 0 to 1, the smaller of two sides first"
    )


def parse_ramp(inner: str, options: Mapping[str, str]) -> tuple[float, float]:
    if "ramp" not in options:
        return 1.0, 1.0
    begin, dash, end = (part.strip() for part in options["ramp"].translate(MINUS).partition("-"))
    if dash and NUMBER.fullmatch(begin) and NUMBER.fullmatch(end):
        first, last = read_number(begin, 0, MAX_STRENGTH), read_number(end, 0, MAX_STRENGTH)
        if first is not None and last is not None:
            return first, last
    raise _option_error(
        inner, "ramp", f"must be two factors of the strength from 0 to {MAX_STRENGTH:g}, at the beginning and the end"
    )


def parse_blocks(inner: str, options: Mapping[str, str]) -> BlockWeights | None:
    """Parse in, mid, out and base, or lbw. None: weight 1 everywhere."""
    groups = {name: options[name] for name in _GROUPS if name in options}
    if groups and "lbw" in options:
        raise UserError(
            f"<{printable(inner)}> has both lbw and {next(iter(groups))}; lbw sets every block.",
            f"Give one of them: {_EXAMPLES['lbw']} or {_BLOCKS_EXAMPLE}.",
        )
    if "lbw" in options:
        blocks = _parse_lbw(inner, options["lbw"])
    else:
        weights = {_GROUPS[name]: _parse_block_weight(inner, name, text) for name, text in groups.items()}
        blocks = BlockWeights.of_groups(**weights)
    return None if blocks == BlockWeights() else blocks


def read_a1111_blocks(inner: str) -> BlockWeights | None:
    """Return the block weights of an extra network of A1111, `lora:add_detail:0.8:lbw=OUTALL`, or without `lbw=`.

    None where it has none, or none that can be read: the extension has random weights and presets of users.
    """
    for i, item in enumerate(inner.split(":")[2:]):
        name, equals, value = item.partition("=")
        is_named, is_third = equals and name.strip().lower() in ("lbw", "w"), i and not equals
        if (is_named or is_third) and (blocks := read_block_weights(value if equals else name)):
            return blocks
    return None


def read_block_weights(text: str) -> BlockWeights | None:
    """Parse a preset or a list of another program; None where it is neither, or changes nothing."""
    try:
        blocks = _parse_lbw("", text)
    except UserError:
        return None
    return None if blocks == BlockWeights() else blocks


def _parse_lbw(inner: str, text: str) -> BlockWeights:
    if preset := PRESETS.get(text.strip().upper()):
        return preset
    texts = text.split(",")
    if len(texts) == 1:
        raise _option_error(
            inner,
            "lbw",
            f"must be {_form_sizes()} numbers or a preset: {', '.join(GROUP_PRESETS)}, a block such as IN04, or NIN04 "
            "for all others",
        )
    if len(texts) not in FORMS:
        raise _option_error(inner, "lbw", f"has {len(texts)} numbers, but must have {_form_sizes()}, or be a preset")
    return BlockWeights.of_list(tuple(_parse_block_weight(inner, "lbw", number) for number in texts))


def _form_sizes() -> str:
    *sizes, last = map(str, FORMS)
    return f"{', '.join(sizes)} or {last}"


def _parse_block_weight(inner: str, name: str, text: str) -> float:
    value = read_number(text, -MAX_STRENGTH, MAX_STRENGTH)
    if value is None:
        what = "must be a number" if name in _GROUPS else f"has {printable(text.strip(), 20)!r}, which must be a number"
        raise _option_error(inner, name, f"{what} from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}")
    return value


def read_number(text: str, smallest: float, largest: float) -> float | None:
    """Parse a number as people write it, rounded; None for anything else, or out of bounds."""
    value = parse_number(text)
    rounded = None if value is None else round(value, _DIGITS) + 0.0  # turns -0.0 into 0.0
    return rounded if rounded is not None and smallest <= rounded <= largest else None


def parse_number(text: str) -> float | None:
    """Parse a number as people write it, `-1.5`, `+1`, `.5`, `1e0`, with any minus sign; None for anything else."""
    plain = text.strip().translate(MINUS)
    return float(plain) + 0.0 if SIGNED_NUMBER.fullmatch(plain) else None


def _option_error(inner: str, name: str, rule: str) -> UserError:
    return UserError(f"The option {name} in <{printable(inner)}> {rule}.", f"For example {_EXAMPLES[name]}.")
