"""Texts inside PNG, JPEG and WebP files, found without decoding a pixel. The bytes may be anybody's and end anywhere.

Nothing is copied or inflated beyond `MAX_TEXT`, and nothing is walked through twice, so that 64 MB of text cost no more
than finding their end.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

MAX_TEXT = 250_000  # bytes; a long prompt and twenty concepts are 10,000
_MAX_PARTS = 20_000  # chunks or segments of one file; the texts stand before the pixels
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"
_EXIF_FOLDER, _USER_COMMENT = 0x8769, 0x9286  # tags of TIFF 6.0 and Exif 2.3


class TooLong(Exception):
    """A text of more than `MAX_TEXT` bytes."""


def png_text(data: bytes, key: str) -> str | None:
    """The first text of a PNG under `key`: tEXt, zTXt or iTXt. Raises TooLong; what is damaged is passed over."""
    wanted = key.encode() + b"\0"
    for kind, begin, end in _chunks(data):
        if kind in _TEXTS and data.startswith(wanted, begin):
            text = _TEXTS[kind](memoryview(data)[begin + len(wanted) : end])
            if text is not None:
                return text
    return None


def user_comment(data: bytes) -> str | None:
    """The Exif UserComment of a JPEG or a WebP. Raises TooLong."""
    exif = _jpeg_exif(data) if data.startswith(b"\xff\xd8") else _webp_exif(data)
    raw = _exif_value(exif.removeprefix(_EXIF)) if exif else None
    return _comment(raw) if raw is not None else None


# --- PNG --------------------------------------------------------------------------------------------------------------


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, begin and end of its content) of each whole chunk."""
    at = len(_PNG) if data.startswith(_PNG) else len(data)
    for _ in range(_MAX_PARTS):
        head = data[at : at + 8]
        end = at + 8 + int.from_bytes(head[:4], "big")
        if len(head) < 8 or end > len(data):
            return
        yield head[4:], at + 8, end
        at = end + 4


def _latin(content: memoryview) -> str:
    return str(_short(content), "latin-1")


def _compressed(content: memoryview) -> str | None:
    raw = _inflated(content[1:])
    return None if raw is None else raw.decode("latin-1")


def _international(content: memoryview) -> str | None:
    head = bytes(content[:1000])  # two flags, then language and translated keyword, each ended by a NUL
    language = head.find(b"\0", 2)
    translated = head.find(b"\0", language + 1)
    if language < 0 or translated < 0:
        return None
    rest = content[translated + 1 :]
    raw = _inflated(rest) if head[0] else bytes(_short(rest))
    return None if raw is None else raw.decode("utf-8", "replace")


_TEXTS = {b"tEXt": _latin, b"zTXt": _compressed, b"iTXt": _international}


def _short(content: memoryview) -> memoryview:
    if len(content) > MAX_TEXT:
        raise TooLong
    return content


def _inflated(content: memoryview) -> bytes | None:
    """At most MAX_TEXT bytes, whatever the content would become; None where it is damaged."""
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(content[: 2 * MAX_TEXT], MAX_TEXT)
    except zlib.error:
        return None
    if inflate.unconsumed_tail:
        raise TooLong
    return raw if inflate.eof else None


# --- JPEG, WebP -------------------------------------------------------------------------------------------------------


def _jpeg_exif(data: bytes) -> bytes | None:
    at = 2
    for _ in range(_MAX_PARTS):
        head = data[at : at + 4]
        length = int.from_bytes(head[2:], "big")
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA or length < 2:  # 0xDA: here the pixels begin
            return None
        if head[1] == 0xE1 and data.startswith(_EXIF, at + 4):
            return data[at + 4 : at + 2 + length]
        at += 2 + length
    return None


def _webp_exif(data: bytes) -> bytes | None:
    if not (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        return None
    at = 12
    for _ in range(_MAX_PARTS):
        head = data[at : at + 8]
        length = int.from_bytes(head[4:], "little")
        if len(head) < 8:
            return None
        if head[:4] == b"EXIF":
            return data[at + 8 : at + 8 + min(length, 4 * MAX_TEXT)]
        at += 8 + length + length % 2
    return None


def _exif_value(tiff: bytes) -> bytes | None:
    """The UserComment in a TIFF structure: only its one folder and its one value are looked at."""
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(tiff[:4])
    if order is None:
        return None
    first = int.from_bytes(tiff[4:8], order)
    if (entry := _entry(tiff, first, _EXIF_FOLDER, order)) is None:
        return None
    if (entry := _entry(tiff, int.from_bytes(entry[8:], order), _USER_COMMENT, order)) is None:
        return None
    length, begin = int.from_bytes(entry[4:8], order), int.from_bytes(entry[8:], order)
    if length > 2 * MAX_TEXT:  # UTF-16
        raise TooLong
    return entry[8 : 8 + length] if length <= 4 else tiff[begin : begin + length]


def _entry(tiff: bytes, at: int, tag: int, order: str) -> bytes | None:
    """The 12 bytes of one entry of the folder at `at`: tag, type, count, value or its place."""
    count = int.from_bytes(tiff[at : at + 2], order)
    for i in range(count):
        entry = tiff[at + 2 + 12 * i : at + 14 + 12 * i]
        if len(entry) < 12:
            return None
        if int.from_bytes(entry[:2], order) == tag:
            return entry
    return None


def _comment(raw: bytes) -> str:
    """Its first 8 bytes name the encoding. Some programs write UTF-16 one way round and some the other."""
    kind, text = raw[:8], raw[8:]
    if kind != b"UNICODE\0":
        return (text if kind in (b"ASCII\0\0\0", bytes(8)) else raw).decode("utf-8", "replace").strip("\0")
    if text[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return text.decode("utf-16", "replace")
    big = text[::2].count(0) >= text[1::2].count(0)  # letters of English have a zero byte first
    return text.decode("utf-16-be" if big else "utf-16-le", "replace").strip("\0")
