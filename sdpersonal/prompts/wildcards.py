"""A folder of lists for `__name__` in templates: UTF-8 text files, one option a line, `#` before a remark."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from .. import files
from ..errors import PersonalError, show
from .tokens import RESERVED

MAX_BYTES = 2_000_000  # of one list
MAX_LINES = 50_000
MAX_LINE = 2000  # characters: as long as a prompt may be

_NAME = re.compile(r"[^\W_](?:[\w .-]*\w)?(?:/[^\W_](?:[\w .-]*\w)?)*")
_LOOKED_THROUGH = 10_000  # files, for the nearest name


class Wildcards:
    """The lists of a folder. Each is read once and then stays as it was. folder None: there are none."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._lines: dict[str, list[str]] = {}

    def lines(self, name: str) -> list[str]:
        """The options of `__name__`, `animals/cats` being `animals/cats.txt`; blank lines and remarks left out.

        Raises PersonalError where there is no such list, or it is empty, too large, no text or outside the folder.
        """
        if name not in self._lines:
            self._lines[name] = _read(self._path(name), name)
        return self._lines[name]

    def names(self) -> list[str]:
        """What lists there are."""
        found: list[str] = []
        for place, folders, here in os.walk(self.folder) if self.folder else ():
            folders.sort()
            relative = [Path(place, one).relative_to(self.folder) for one in sorted(here) if one.endswith(".txt")]
            found += [one.with_suffix("").as_posix() for one in relative if not one.name.startswith(".")]
            if len(found) > _LOOKED_THROUGH:
                break
        return found[:_LOOKED_THROUGH]

    def _path(self, name: str) -> Path:
        parts = name.split("/")
        if not _NAME.fullmatch(name) or any(part.partition(".")[0].lower() in RESERVED for part in parts):
            raise PersonalError(
                f"__{show(name, 60)}__ is no name that a list can have.",
                r"Write __colour__ or __animals/cats__; for the underscores themselves \_\_.",
            )
        if self.folder is None:
            raise PersonalError(
                f"I know no folder with a list for __{show(name, 60)}__.",
                r"Name one with --wildcards FOLDER; for the underscores themselves write \_\_.",
            )
        path = files.inside(self.folder, *parts[:-1], parts[-1] + ".txt")
        if not os.path.lexists(path):
            raise PersonalError(f"There is no list {show(name, 60)}.txt in {show(str(self.folder))}.", self._near(name))
        return path

    def _near(self, name: str) -> str:
        names = self.names()
        by_letters = {one.lower(): one for one in names}
        near = get_close_matches(name.lower(), by_letters, 3)
        last = {one.rpartition("/")[2]: one for one in by_letters}  # the right list in a folder that was left out
        near += [last[one] for one in get_close_matches(name.lower(), last, 1) if last[one] not in near]
        if near:
            return f"Did you mean {' or '.join(f'__{show(by_letters[one], 60)}__' for one in near[:3])}?"
        here = ", ".join(f"__{show(one, 60)}__" for one in names[:5])
        return f"There are {here}." if here else "Write one: a text file with an option in each line."


def _read(path: Path, name: str) -> list[str]:
    try:
        text = files.read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PersonalError(f"{show(name, 60)}.txt is not UTF-8 text.", "Save it as UTF-8.") from error
    lines = [line.strip() for line in re.split(r"\r\n|[\r\n]", text)]
    if too_long := next((i for i, line in enumerate(lines, 1) if len(line) > MAX_LINE), None):
        raise PersonalError(
            f"Line {too_long} of {show(name, 60)}.txt has more than {MAX_LINE:,} characters.", "Cut it."
        )
    options = [line for line in lines if line and not line.startswith("#")]
    if not options:
        raise PersonalError(f"{show(name, 60)}.txt is empty.", "Write an option in each line.")
    if len(options) > MAX_LINES:
        raise PersonalError(f"{show(name, 60)}.txt has {len(options):,} lines; I read {MAX_LINES:,}.", "Split it.")
    return options
