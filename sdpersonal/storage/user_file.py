"""Read who may use a server: a file with a line NAME:SECRET for each user, which nobody else can read."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ..errors import UserError, printable
from .reading import read_bytes

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MAX_BYTES = 100_000


def user_folder_name(user: str) -> str:
    """Return the user's name as a folder name. Raises UserError if it is not allowed."""
    if not _NAME.fullmatch(user):
        raise UserError("A user's name has 1 to 32 of a-z, 0-9 and -.")
    return user


def read_user_file(path: Path, secret: str, min_length: int, hint: str) -> dict[str, str]:
    """Return the secrets by user's name.

    secret: what it is called, "password"; min_length: its characters, without the spaces around it; hint: what to do if
    it is too short.

    Raises: UserError for a file that others can read, or with a line that is no such line.
    """
    data = read_bytes(path, _MAX_BYTES)
    file = printable(str(path))
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UserError(f"Others can read {file}.", f"Run: chmod 600 {file}")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise UserError(f"Line {number} of {file} is not UTF-8.", "Save the file as UTF-8.") from None
    secrets: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\r")
        if not text.strip() or text.startswith("#"):
            continue
        name, colon, value = text.partition(":")
        if not colon or not _is_usable(value, min_length):
            raise UserError(f"Line {number} of {file} is not NAME:{secret.upper()}, or the {secret} is short.", hint)
        if name in secrets:
            raise UserError(f"Line {number} of {file} has the name {printable(name, 60)} again.", "Remove one of them.")
        try:
            secrets[user_folder_name(name)] = value
        except UserError as error:
            raise UserError(f"Line {number} of {file} has no user's name.", error.message) from None
    if not secrets:
        raise UserError(f"{file} has no line.", f"Write one for each user: NAME:{secret.upper()}.")
    return secrets


def _is_usable(text: str, min_length: int) -> bool:
    # U+FFFD stands for what could not be decoded: such a secret would be known to everybody.
    return len(text.strip()) >= min_length and text.isprintable() and "\ufffd" not in text
