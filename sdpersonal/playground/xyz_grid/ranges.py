"""Parse lists of numbers: `1, 2, 5`, `1..4`, `0..1 by 0.25`, `0, 0.25, ..., 1`."""

from __future__ import annotations

import re
from decimal import Decimal

from ...errors import UserError, printable

MAX_VALUES = 100  # along one axis
_MINUS = str.maketrans("\u2212\ufe63\uff0d", "---")
_NUMBER = r"[+-]?(?:[0-9]{1,20}(?:\.[0-9]{1,15})?|\.[0-9]{1,15})"
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.(?!\.)\s*({_NUMBER})(?:\s+by\s+({_NUMBER}))?")


def parse_numbers(text: str) -> tuple[int | float, ...]:
    """Parse a list of numbers, whole ones as int. The arithmetic is decimal, so that 0..1 by 0.1 ends at 1.

    Raises UserError if it is not such a list, or has more than `MAX_VALUES` numbers.
    """
    text = text.translate(_MINUS)
    numbers: list[Decimal] = []
    items = [item.strip() for item in text.split(",")]
    for i, item in enumerate(items):
        if item in ("...", "…"):
            numbers += _expand_ellipsis(numbers, items[i + 1 : i + 2], text)
        elif span := _RANGE.fullmatch(item):
            first, last = Decimal(span[1]), Decimal(span[2])
            step = Decimal(span[3]) if span[3] else Decimal(1 if last >= first else -1)
            numbers += _arithmetic_range(first, last, step, text)
        elif re.fullmatch(_NUMBER, item):
            numbers.append(Decimal(item))
        else:
            raise _no_list_error(text)
    if len(numbers) > MAX_VALUES:
        raise _too_many_error(text)
    return tuple(int(number) if number == number.to_integral_value() else float(number) for number in numbers)


def _expand_ellipsis(before: list[Decimal], after: list[str], text: str) -> list[Decimal]:
    """Expand `...`: continue with the step of the two numbers before it, up to the number after it."""
    if len(before) < 2 or not after or not re.fullmatch(_NUMBER, after[0]):
        raise _no_list_error(text)
    last, step = Decimal(after[0]), before[-1] - before[-2]
    steps = _arithmetic_range(before[-1], last, step, text)[1:]
    return [number for number in steps if number != last]


def _arithmetic_range(first: Decimal, last: Decimal, step: Decimal, text: str) -> list[Decimal]:
    if step == 0 or (last - first) / step < 0:
        raise UserError(f"{printable(text)} never ends: its steps lead away.", "For example 0..1 by 0.25.")
    if (last - first) / step >= MAX_VALUES:
        raise _too_many_error(text)
    return [first + step * i for i in range(int((last - first) / step) + 1)]


def _no_list_error(text: str) -> UserError:
    quoted = repr(printable(text)) if text.strip() else "An empty text"
    return UserError(f"{quoted} is not a list of numbers.", "For example 1, 2, 5 or 1..4 or 0..1 by 0.25.")


def _too_many_error(text: str) -> UserError:
    return UserError(f"{printable(text)} are more than {MAX_VALUES} values.", "Take larger steps.")
