"""AUTOMATIC1111's rule of emphasis (modules/prompt_parser.py, parse_prompt_attention), read once more: sign by sign,
every sign with its own weight, without our reader and without theirs."""

import re

BREAK = "\0BREAK"


def signs(prompt: str) -> list[tuple[str, float]]:
    """Every sign of the text with its weight; (BREAK, 0) where a new chunk begins."""
    out: list[list] = []  # sign, weight
    stretch_of: list[int] = []  # which stretch each sign is of: BREAK is looked for within one
    round_, square = [], []
    at = stretch = 0
    previous = ""

    def say(sign, kind):
        nonlocal stretch, previous
        # All signs that are none of the rule's own make one stretch; anything else is a stretch by itself.
        stretch += not (kind == previous == "plain")
        previous = kind
        out.append([sign, 1.0])
        stretch_of.append(stretch)

    def times(first, factor):
        for item in out[first:]:
            item[1] *= factor

    while at < len(prompt):
        sign = prompt[at]
        weight = re.match(r":\s*([+-]?[.\d]+)\s*\)", prompt[at:])
        step = 1
        if sign == "\\":
            if prompt[at + 1 : at + 2] in tuple("()[]\\"):
                say(prompt[at + 1], "escaped")
                step = 2
            previous = "escape"
        elif sign in "([":
            (round_ if sign == "(" else square).append(len(out))
            previous = "bracket"
        elif weight and round_:
            times(round_.pop(), float(weight[1]))
            step = len(weight[0])
            previous = "bracket"
        elif weight:
            for item in weight[0]:
                say(item, "plain" if item is not weight[0][0] else "colon")
            step = len(weight[0])
            previous = "weight"
        elif sign == ")" and round_:
            times(round_.pop(), 1.1)
            previous = "bracket"
        elif sign == "]" and square:
            times(square.pop(), 1 / 1.1)
            previous = "bracket"
        else:
            say(sign, "bracket" if sign in ")]:" else "plain")
        at += step
    for first in round_:
        times(first, 1.1)
    for first in square:
        times(first, 1 / 1.1)
    return _broken(out, stretch_of)


def _broken(out, stretch_of):
    """BREAK as a word of its own, and the spaces around it, out of each stretch."""
    message = []
    for stretch in dict.fromkeys(stretch_of):
        concept = [tuple(item) for item, of in zip(out, stretch_of, strict=True) if of == stretch]
        text, at = "".join(sign for sign, _ in concept), 0
        for word in re.finditer(r"\s*\bBREAK\b\s*", text):
            message += [*concept[at : word.start()], (BREAK, 0.0)]
            at = word.end()
        message += concept[at:]
    return message
