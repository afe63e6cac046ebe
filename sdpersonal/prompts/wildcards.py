"""Read wildcards, the lists for `__name__` in templates: text files with one option a line, and packs (YAML, JSON)."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from .. import storage
from ..errors import UserError, printable
from .tokens import RESERVED_NAMES
from .wildcard_packs import SUFFIXES, read_pack

MAX_BYTES = 2_000_000  # of one list
MAX_PACK_BYTES = 10_000_000
MAX_LINES = 50_000
MAX_LINE = 2000  # characters, as for a prompt

_MAX_FILES = 10_000  # files listed for patterns, packs and name suggestions
_ENCODINGS = (  # by the byte order mark; UTF-32's begins with UTF-16's, so it comes first
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class _Place:
    """The location of a list: a text file, or keys in a pack. path: relative to the folder, with its suffix."""

    path: str
    keys: tuple[str, ...] | None = None


class Wildcards:
    """The lists of a folder. Each is read once and then cached. folder None: there are none."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._lines: dict[str, list[str]] = {}
        self._packs: dict[str, dict[tuple[str, ...], list[str]]] = {}
        self._damaged: list[UserError] = []  # packs that cannot be read
        self._places: dict[str, _Place] | None = None  # lists by name, filled lazily

    def lines(self, name: str) -> list[str]:
        """Return the options of `__name__`, without blank lines and comments.

        `animals/cats` is `animals/cats.txt`, or the list under those keys in a pack; capitals do not matter unless a
        file has the exact name. A pattern, `animals/*`, joins all lists that it matches: `*` and `?` match letters of
        one part of a name, `**` any folders.
        Raises UserError if there is no such list, or it is empty, too large, not text or outside the folder.
        """
        if name not in self._lines:
            self._lines[name] = self._read(name)
        return self._lines[name]

    def names(self) -> list[str]:
        """Return the names of all lists: those in text files, then those in packs."""
        return list(self._all())

    def _read(self, name: str) -> list[str]:
        _check(name)
        if self.folder is None:
            raise UserError(
                f"No folder of wildcards was given for __{printable(name, 60)}__.",
                r"Name one with --wildcards FOLDER; for the underscores themselves write \_\_.",
            )
        if name[0] in "~@!" and name not in self._all():
            return self._sampled(name)
        if "*" in name or "?" in name:
            return self._matching(name)
        path = self._resolve(f"{name}.txt")
        if os.path.lexists(path):
            return _read_text(path, name)
        return self._lines_at(self._find_place(name), name)

    def _sampled(self, name: str) -> list[str]:
        """Read a list whose name may begin with the extension's sampler signs: `~` random, `@` and `!` in turn."""
        if name[0] == "~":
            return self.lines(name[1:])
        raise UserError(
            f"__{printable(name, 60)}__ asks for one option after the other; here they are chosen at random.",
            f"Write __{printable(name[1:], 60)}__.",
        )

    def _lines_at(self, location: _Place, name: str, empty: bool = False) -> list[str]:
        """Read the list at a location. empty: whether a file without options is allowed."""
        if location.keys is None:
            return _read_text(self._resolve(location.path), name, empty)
        return _checked(self._pack(location.path)[location.keys], f"__{printable(name, 60)}__")

    def _find_place(self, name: str) -> _Place:
        """Find the list of that name, ignoring case; else the only list of that name in any subfolder.

        Raises UserError if there is none, or several.
        """
        places, target = self._all(), _folded(name)
        if name in places:
            return places[name]
        matches = [key for key in places if _folded(key) == target]
        # A pack's lists can also be named with the pack's name in front.
        full = {key: _folded(_full(place)) for key, place in places.items() if place.keys is not None}
        matches = matches or [key for key in full if full[key] == target]
        matches = matches or [key for key in places if _folded(key).endswith(f"/{target}")]
        matches = matches or [key for key, place in places.items() if not place.keys and _folded(place.path) == target]
        if len(matches) == 1:
            return places[matches[0]]
        if matches:
            raise UserError(
                f"__{printable(name, 60)}__ may be any of {', '.join(map(_spelled, matches[:4]))}.",
                "Write the one that is meant, with its folder and capitals.",
            )
        raise self._missing(name)

    def _missing(self, name: str) -> UserError:
        within = [candidate for candidate in self._all() if _folded(candidate).startswith(_folded(name) + "/")]
        if within:
            return UserError(
                f"__{printable(name, 60)}__ is a group of {len(within):,} lists.",
                f"For one of them all write __{printable(name, 60)}/**__, or a list: {_spelled(within[0])}.",
            )
        problem = f"There is no list {printable(name, 60)}.txt in {printable(str(self.folder))}."
        if self._damaged:
            damage = " ".join(error.message for error in self._damaged[:3])
            return UserError(f"{problem} {damage}", self._suggest_names(name))
        return UserError(problem, self._suggest_names(name))

    def _matching(self, pattern: str) -> list[str]:
        if not re.search(r"[^*?/]", pattern):
            raise UserError(
                f"__{printable(pattern, 60)}__ matches every list.", "Write a part of a name: __animals/*__."
            )
        signs, places = _signs(pattern), self._all()
        matches = [candidate for candidate in places if _fits(signs, _folded(candidate))]
        by_short_name = set(matches)
        matches += [
            candidate
            for candidate, place in places.items()
            if place.keys is not None and candidate not in by_short_name and _fits(signs, _folded(_full(place)))
        ]
        if not matches:
            raise UserError(
                f"No list in {printable(str(self.folder))} matches __{printable(pattern, 60)}__.",
                self._suggest_names(pattern.replace("*", "")),
            )
        lines: list[str] = []
        for candidate in matches:
            lines += self._lines_at(places[candidate], candidate, empty=True)
            if len(lines) > MAX_LINES:
                raise UserError(
                    f"The lists that match __{printable(pattern, 60)}__ have more than {MAX_LINES:,} lines.",
                    "Write a longer part of their names.",
                )
        return _checked(lines, f"Every list that matches __{printable(pattern, 60)}__")

    def _all(self) -> dict[str, _Place]:
        """Return every list by its name. If a name in a pack is taken, the pack's own name is put in front of it."""
        if self._places is None:
            paths = self._paths()
            texts = {path.removesuffix(path[-4:]): _Place(path) for path in paths if path.lower().endswith(".txt")}
            self._places = texts
            for path in paths:
                for keys in self._keys(path) if path.lower().endswith(SUFFIXES) else ():
                    place = _Place(path, keys)
                    name = _short(path, keys)
                    self._places.setdefault(name if name not in self._places else _full(place), place)
        return self._places

    def _keys(self, path: str) -> Iterable[tuple[str, ...]]:
        try:
            return self._pack(path)
        except UserError as error:  # an unreadable pack must not hide the others
            self._damaged.append(error)
            return ()

    def _pack(self, path: str) -> dict[tuple[str, ...], list[str]]:
        if path not in self._packs:
            text = _text_of(self._resolve(path), path, MAX_PACK_BYTES)
            self._packs[path] = read_pack(text, path)
        return self._packs[path]

    def _resolve(self, path: str) -> Path:
        """Return the file at a path relative to the folder. Raises UserError where that is outside it."""
        if self.folder is None:
            raise FileNotFoundError(path)
        return storage.resolve_inside(self.folder, *path.split("/"))

    def _paths(self) -> list[str]:
        """Return the paths of the lists and packs, relative to the folder."""
        paths: list[str] = []
        if self.folder is None:
            return paths
        for place, folders, files in os.walk(self.folder):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            for file in sorted(files):
                if file.lower().endswith((".txt", *SUFFIXES)) and not file.startswith("."):
                    paths.append(Path(place, file).relative_to(self.folder).as_posix())
            if len(paths) > _MAX_FILES:
                break
        return paths[:_MAX_FILES]

    def _suggest_names(self, name: str) -> str:
        names = self.names()
        by_letters = {_folded(listed): listed for listed in names}
        similar = get_close_matches(_folded(name), by_letters, 3)
        last = {
            listed.rpartition("/")[2]: listed for listed in by_letters
        }  # by the last part, if the folder was left out
        similar += [last[listed] for listed in get_close_matches(_folded(name), last, 1) if last[listed] not in similar]
        if similar:
            return f"Did you mean {' or '.join(_spelled(by_letters[listed]) for listed in similar[:3])}?"
        examples = ", ".join(map(_spelled, names[:5]))
        return f"There are {examples}." if examples else "Write one: a text file with an option in each line."


def _check(name: str) -> None:
    """Raise UserError for a name that is not possible on every system."""
    if "(" in name and "=" in name.partition("(")[2] and name.endswith(")"):
        raise UserError(
            f"__{printable(name, 60)}__ passes a value to its list; variables are not supported.",
            "Write the list without the brackets; where it has a default, ${figure:frog}, that is used.",
        )
    parts = name.split("/")
    if any(
        not part.strip(" .") or part[0] in " ." or part[-1] == " " or part.partition(".")[0].lower() in RESERVED_NAMES
        for part in parts
    ) or re.search(r'[\x00-\x1f\x7f\\<>:"|]', name):
        raise UserError(
            f"__{printable(name, 60)}__ is not a valid name of a list.",
            r"Write __colour__ or __animals/cats__; for the underscores themselves \_\_.",
        )


def _spelled(name: str) -> str:
    """Format a list's name for a template, with `?` for characters that have another meaning there."""
    name = re.sub(r"^_|_$|_(?=_)|(?<=_)_|[{}|\\]|^[^\w*?('&\[#~@!]", "?", name)
    return f"__{printable(name, 80)}__"


def _folded(name: str) -> str:
    """Normalize a name: ignore case, and how accents are stored (macOS decomposes them)."""
    return unicodedata.normalize("NFC", name).casefold()


def _short(path: str, keys: tuple[str, ...]) -> str:
    """Return a list's name: its file's, or a pack's keys in the pack's folder, as in the dynamic-prompts extension."""
    folder, _, file = path.rpartition("/")
    return "/".join(filter(None, (folder, *(keys or (file.rpartition(".")[0],)))))


def _full(location: _Place) -> str:
    """Return the name with the pack's own name in front of the keys."""
    return "/".join((location.path.rpartition(".")[0], *(location.keys or ())))


def _signs(text: str) -> list[str]:
    """Split a pattern into its signs and the texts between them."""
    return [sign for sign in re.split(r"(\*\*/|\*\*|\*|\?)", re.sub(r"\*{3,}", "**", _folded(text))) if sign]


def _fits(signs: Sequence[str], name: str) -> bool:
    """Return whether a pattern matches a whole name: `*` and `?` match within a part of it, `**` across folders.

    Bit p of a number stands for the place before character p. A regular expression would try every way to share the
    name among the signs, and never end where there are many.
    """
    end = 1 << len(name)
    slashes = sum(1 << place for place, character in enumerate(name) if character == "/")
    others = (end - 1) & ~slashes
    places = 1
    for sign in signs:
        lowest = places & -places
        if sign == "?":
            places = (places & others) << 1
        elif sign == "*":  # the carry of the sum runs from each place to the next slash (Myers 1999)
            places = (((places & others) + others) ^ others | places) & (2 * end - 1)
        elif sign == "**":
            places = 2 * end - lowest if lowest else 0
        elif sign == "**/":  # nothing, or some folders
            places |= (slashes & -(lowest << 1)) << 1 if lowest else 0
        else:
            begins = sum(1 << match.start() for match in re.finditer(f"(?={re.escape(sign)})", name))
            places = (places & begins) << len(sign)
    return bool(places & end)


def _read_text(path: Path, name: str, empty: bool = False) -> list[str]:
    text = _text_of(path, f"{name}.txt", MAX_BYTES)
    lines = [line.strip() for line in re.split(r"\r\n|[\r\n]", text)]
    if too_long := next((i for i, line in enumerate(lines, 1) if len(line) > MAX_LINE), None):
        raise UserError(
            f"Line {too_long} of {printable(name, 60)}.txt has more than {MAX_LINE:,} characters.", "Cut it."
        )
    options = [line for line in lines if line and not line.startswith("#")]
    return options if empty and not options else _checked(options, f"{printable(name, 60)}.txt")


def _text_of(path: Path, name: str, limit: int) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark."""
    data = storage.read_bytes(path, limit)
    encoding = next((encoding for mark, encoding in _ENCODINGS if data.startswith(mark)), "utf-8-sig")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(name, 60)} is not UTF-8 text.", "Save it as UTF-8.") from error


def _checked(options: list[str], what: str) -> list[str]:
    if not options:
        raise UserError(f"{what} is empty.", "Write an option in each line.")
    if len(options) > MAX_LINES:
        raise UserError(f"{what} has {len(options):,} lines; the limit is {MAX_LINES:,}.", "Split it.")
    return options
