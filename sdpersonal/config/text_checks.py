"""Check text from outside: say why it cannot be used as a value, and remove invisible characters from it.

Every value from a user or another program is checked here once (`config.SettingsBase`, `photos.captions`), so that a
terminal in Latin-1, an unset shell variable and half of a surrogate pair in JSON get the same message.
"""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress
from dataclasses import dataclass

from pydantic import BeforeValidator

from ..errors import FieldError, printable

MAX_TEXT = 10_000  # characters of a value that has no limit of its own
MAX_PATH = 4096  # bytes of a path, as Linux has it (PATH_MAX)
MAX_NAME = 255  # bytes of one name in a path, on every common file system (NAME_MAX)

_LINE_AND_TAB = "\t\n\r\v\f\x1c\x1d\x1e\x1f\x85"  # control characters that are ordinary white space in a text
_JOINERS = "\u200c\u200d"
_TAGS = range(0xE0020, 0xE0080)  # spell out the region of a flag emoji (Unicode Technical Standard 51, section C.1)
_BLACK_FLAG = "\U0001f3f4"
_LOOKS_EMPTY = "\u115f\u1160\u2800\u3164\uffa0"  # fillers: letters and symbols without ink


@dataclass(frozen=True)
class Problem:
    """What is wrong with a value: `text` follows the value's name in a sentence, `hint` is the next thing to do."""

    text: str
    hint: str = ""


def encoding_problem(text: str) -> Problem | None:
    """Return a problem if the text is not valid Unicode, such as non-UTF-8 bytes from a command line."""
    with suppress(UnicodeEncodeError):
        text.encode()
        return None
    for character in text:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:  # Python's surrogateescape (PEP 383)
            return Problem(
                f"holds the byte 0x{code - 0xDC00:02X}, which is not UTF-8: {printable(text, 60)}",
                "Type it in a terminal that uses UTF-8, or rename the file.",
            )
        if 0xD800 <= code <= 0xDFFF:
            return Problem(f"is not valid Unicode: it holds half of a surrogate pair (U+{code:04X}).", "Remove it.")
    return None


def control_problem(text: str, allowed: str = _LINE_AND_TAB) -> Problem | None:
    """Return a problem if the text contains a control character other than `allowed`."""
    for character in text:
        if unicodedata.category(character) == "Cc" and character not in allowed:
            return Problem(f"holds the control character U+{ord(character):04X}.", "Remove it.")
    return None


IF_UNSET = "If it comes from a shell variable, that variable is not set."  # for a command line; a page leaves it out


def is_blank(text: str) -> bool:
    """Return whether nothing in the text is visible."""
    return all(c.isspace() or c in _LOOKS_EMPTY or unicodedata.category(c) in ("Cf", "Cc") for c in text)


def text_problem(text: str, may_be_blank: bool = False) -> Problem | None:
    """Return why a text cannot be used as a value; None if it can."""
    if not may_be_blank and is_blank(text):
        return Problem("is empty.", IF_UNSET)
    if len(text) > MAX_TEXT:
        return Problem(f"must be text of up to {MAX_TEXT:,} characters, got {len(text):,}.", "Shorten it.")
    return encoding_problem(text) or control_problem(text)


def path_problem(text: str) -> Problem | None:
    """Return why a text cannot be used as a path; None if it can."""
    if problem := text_problem(text) or control_problem(text, allowed=""):
        return problem
    size = len(text.encode())
    if size > MAX_PATH:
        return Problem(f"is too long for a path: {size:,} bytes; {MAX_PATH:,} are the most.", "Shorten it.")
    longest = max(len(name.encode()) for name in text.split(os.sep))
    if longest > MAX_NAME:
        return Problem(f"has a name of {longest:,} bytes in it; {MAX_NAME} are the most.", "Shorten it.")
    return None


def check_path(value: object, name: str) -> None:
    """Raise FieldError if the path that a Python caller passed as `name` is unusable. `Path("")` equals `Path(".")`, so
    only text can be found empty."""
    if isinstance(value, str | os.PathLike) and (problem := path_problem(os.fspath(value))):
        raise FieldError(name, f"{name} {problem.text}", problem.hint)


def plain_spaces(text: str) -> str:
    """Replace all white space by single plain spaces and remove invisible characters; joined emoji and the joiners
    inside words of other scripts stay.

    >>> plain_spaces("a wheel\\u00adbarrow\\u00a0in\\tthe snow\\u200e")
    'a wheelbarrow in the snow'
    """
    visible: list[str] = []
    for index, character in enumerate(text):
        if character.isspace():
            visible.append(" ")
        elif _is_seen(character, visible[-1] if visible else " ", text[index + 1 : index + 2]):
            visible.append(character)
    return " ".join("".join(visible).split())


def _is_seen(character: str, before: str, after: str) -> bool:
    if character in _JOINERS:  # between two emoji, or two letters of a script that is joined
        return all(side and not side.isascii() and not side.isspace() for side in (before, after))
    if ord(character) in _TAGS:
        return before == _BLACK_FLAG or ord(before[-1]) in _TAGS
    return character not in _LOOKS_EMPTY and unicodedata.category(character) not in ("Cf", "Cc")


def strip_unsafe_characters(text: str) -> str:
    """Remove control, bidirectional and invisible characters; line ends and unusual spaces become spaces."""
    if text.isprintable():
        return text.strip()  # the common case; a listing reads ten texts per concept
    return "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text).strip()


STRIP_UNSAFE = BeforeValidator(lambda value: strip_unsafe_characters(value) if isinstance(value, str) else value)
"""Mark a text field whose unsafe characters are removed, in `Annotated`."""
