"""Read captions of photos: which text belongs to which photo, and which part of it can be trained with.

A caption says what else is in a photo, one sentence a line, with `{}` where the subject's token goes. It is read from
`01.txt`, `01.caption`, `01.jpg.txt` or `01.jpg.caption` beside `01.jpg`, ignoring case, or from the rows of a
`metadata.jsonl` or `metadata.csv` (Hugging Face's imagefolder: `file_name` and `text`). Files of other trainers have no
`{}`: it replaces their trigger word, else it is put in front.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..config.text_checks import control_problem, encoding_problem, plain_spaces
from ..errors import printable

MAX_LINES = 20  # of one caption file
MAX_LINE = 20_000  # characters; text beyond the text encoder's limit is cut, with a note
_MAX_BYTES = 200_000  # of one caption file
_MAX_TABLE = 20_000_000  # bytes of a table
_SUFFIXES = (".txt", ".caption")
TABLES = ("metadata.jsonl", "metadata.csv")
_COLUMNS = ("text", "caption", "prompt")

_MARKS = (  # UTF-32 first: its byte order mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Placeholders of other trainers' captions for the subject: ai-toolkit's [trigger], the advanced scripts' <s0><s1>,
# A1111's [name], Replicate's TOK, the rare words of DreamBooth's tutorials, and a token of ours.
_TRIGGER = re.compile(
    r"\[(?:trigger|name)\]|(?:<s\d+>)+|<[a-z0-9-]+/[a-z0-9-]+(?::[\d.]+)?>|\b(?:(?i:sks|ohwx|zwx)|TOK)\b"
)
_PLACE = re.compile(r"\{\s+\}")  # a mistyped {}
_LINE_END = re.compile(r"\r\n|\n|\r")  # Unicode's other line ends occur in pasted sentences and count as spaces


class Refused(Exception):
    """The reason why a caption cannot be used: the rest of a sentence that starts with its file's name."""


@dataclass(frozen=True)
class Caption:
    """The captions of one photo, each with `{}` once; notes: remarks for the user."""

    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Captions:
    """The captions in a folder, by the names of its photos.

    names: of all files of the folder; read_file: returns a file's bytes by its name, raises Refused; kind: "object",
    "person" or "style", which decides how a caption that names no subject is completed. used: the files that captions
    came from; table: the name of the file with captions of many photos, or "".
    """

    def __init__(self, names: Sequence[str], read_file: Callable[[str], bytes], kind: str = "object"):
        self._files = by_key(sorted(names))
        self._read_file, self._kind = read_file, kind
        self.used: set[str] = set()
        self.table = next((self._files[name] for name in TABLES if name in self._files), "")
        self._row_problem = ""
        self._rows = self._read_table() if self.table else {}

    def of(self, photo: str) -> Caption:
        """Return the caption of the photo with this file name; without lines if it has none or it cannot be used."""
        if source := caption_file(photo, self._files):
            self.used.add(source)
            where, load = printable(source), lambda: text_of(self._read_file(source))
        elif (text := self._rows.get(_key(photo))) is not None:
            where, load = f"its text in {printable(self.table)}", lambda: text
        else:
            return Caption()
        try:
            lines, completed = completed_lines(lines_of(load()), self._kind)
        except Refused as reason:
            return Caption(notes=(f"its caption is not used: {where} {reason}",))
        notes = (f"{where} has no {{}} for the subject; it is read as: {printable(lines[0])}",) if completed else ()
        return Caption(lines, notes)

    def table_problem(self, photos: Sequence[str]) -> str:
        """Return what is wrong with the table for these photos: the rest of a sentence, "" for nothing."""
        if self._rows and not self._rows.keys() & set(map(_key, photos)):
            return f"is about none of these photos; the first that it names is {printable(next(iter(self._rows)))}"
        return self._row_problem

    def _read_table(self) -> dict[str, str]:
        """Read the texts of the table by their photo's name. Invalid rows are left out and the first is reported."""
        self.used.add(self.table)
        texts: dict[str, str] = {}
        try:
            data = self._read_file(self.table)
            if len(data) > _MAX_TABLE:
                raise Refused(f"is larger than {_MAX_TABLE // 10**6} MB")
            table = text_of(data, _MAX_TABLE)
            rows = _csv_rows(table) if _key(self.table).endswith(".csv") else _json_rows(table)
            for number, row in rows:
                try:
                    _add_text(texts, row)
                except Refused as reason:
                    self._row_problem = self._row_problem or f"{reason} in line {number}; its other lines are used"
        except Refused as reason:
            self._row_problem = str(reason)
        return texts


def caption_file(photo: str, files: dict[str, str]) -> str | None:
    """Return the text file that belongs to a photo, the most specific of several. files: names by `_key`."""
    stem = os.path.splitext(photo)[0]
    candidates = [f"{begin}{suffix}" for begin in (photo, stem) for suffix in _SUFFIXES]
    return next((files[_key(name)] for name in candidates if _key(name) in files), None)


def by_key(names: Sequence[str]) -> dict[str, str]:
    """Index names as `caption_file` looks them up."""
    return {_key(name): name for name in names}


def _key(name: str) -> str:
    """Normalize a file name: file systems differ in case and in how they store an é, both invisible to people."""
    return unicodedata.normalize("NFC", name).casefold()


def _json_rows(table: str) -> Iterator[tuple[int, object]]:
    """Yield the rows of a metadata.jsonl with their line's number; a line that is not JSON as text."""
    for number, line in enumerate(_LINE_END.split(table), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, line


def _csv_rows(table: str) -> Iterator[tuple[int, object]]:
    """Yield the rows of a metadata.csv with their line's number. Raises Refused if it is not one."""
    rows = csv.DictReader(table.splitlines(keepends=True))
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise Refused(f"is not CSV in line {rows.line_num + 1}: {error}") from None


def _add_text(texts: dict[str, str], row: object) -> None:
    """Add the text of a table's row. A row without text means that its photo has no caption. Raises Refused."""
    if isinstance(row, str):
        raise Refused("has no whole JSON object")
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise Refused("has no file_name")
    values = [row[column] for column in _COLUMNS if row.get(column) is not None]
    if not all(isinstance(value, str) for value in values) or not any(column in row for column in _COLUMNS):
        raise Refused("has no text")
    if text := next(filter(None, values), None):
        texts.setdefault(_key(row["file_name"].removeprefix("./")), text)


def text_of(data: bytes, limit: int = _MAX_BYTES) -> str:
    """Decode a file's text: UTF-8, or UTF-16 or UTF-32 with a byte order mark. Raises Refused."""
    if len(data) > limit:
        raise Refused(f"is larger than {limit // 1000} kB")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise Refused(f"is not {name} in line {line}; save it as UTF-8") from None
    if "\0" in text:
        raise Refused("holds NUL characters, as UTF-16 without its mark does; save it as UTF-8")
    return text


def lines_of(text: str) -> tuple[str, ...]:
    """Split a text into its captions, with plain spaces. Raises Refused with the actual reason."""
    if problem := encoding_problem(text) or control_problem(text):
        raise Refused(problem.text.rstrip("."))
    lines = tuple(filter(None, (_PLACE.sub("{}", plain_spaces(line)) for line in _LINE_END.split(text))))
    if not lines:
        raise Refused("is empty")
    if len(lines) > MAX_LINES:
        raise Refused(f"has {len(lines)} lines; up to {MAX_LINES} are read, a caption each")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise Refused(f"has {len(line):,} characters in line {number}; up to {MAX_LINE:,} are read")
        if (times := line.count("{}")) > 1:
            raise Refused(f"has {{}} {times} times in line {number}; it stands once, where the subject's word goes")
        if not any(unicodedata.category(c)[0] in "LNS" for c in line.replace("{}", "x")):
            raise Refused(f"has no word in line {number}")
    return lines


def completed_lines(lines: Sequence[str], kind: str) -> tuple[tuple[str, ...], bool]:
    """Return the captions, each with `{}`, and whether it was missing in one."""
    whole = tuple(line if "{}" in line else _completed(line, kind) for line in lines)
    return whole, whole != tuple(lines)


def _completed(line: str, kind: str) -> str:
    if _TRIGGER.search(line):
        return " ".join(_TRIGGER.sub("", _TRIGGER.sub("{}", line, count=1)).split())
    if kind == "style":
        return f"{line.rstrip('.')} in the style of {{}}"
    return f"{{}}, {line}" if _is_tags(line) else f"a photo of {{}}, {line}"


def _is_tags(line: str) -> bool:
    """Return whether the line is a list of tags: three or more, with a median of at most three words."""
    words = sorted(len(part.split()) for part in line.split(","))
    return len(words) >= 3 and words[len(words) // 2] <= 3


def shortened(caption: str, fits: Callable[[str], bool]) -> str:
    """Shorten a caption to what fits: cut its end, or else its beginning, at a comma or between words; `{}` stays.

    Raises Refused if not even `{}` alone fits.
    """
    if fits(caption):
        return caption
    before, after = caption.split("{}")
    if fits(f"{before}{{}}"):
        return f"{before}{{}}{_longest_prefix(after, lambda end: fits(f'{before}{{}}{end}'))}".strip()
    if not fits("{}"):
        raise Refused("leaves no place for the subject's word")
    backwards = _longest_prefix(before[::-1], lambda begin: fits(f"{begin[::-1]}{{}}"))
    return f"{backwards[::-1]}{{}}".strip()


def _longest_prefix(text: str, fits: Callable[[str], bool]) -> str:
    """Return the longest prefix that fits, by binary search, cut back to the last comma or space near its end."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle - 1)
    cut = text[:low]
    ends = (cut.rfind(mark) for mark in (",", " "))
    return next((cut[:end] for end in ends if end > len(cut) // 2), cut).rstrip(" ,")
