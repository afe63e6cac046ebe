"""Read texts in PNG, JPEG, WebP and AVIF files without decoding pixels. The bytes are untrusted and may be truncated.

Nothing is copied or inflated beyond `MAX_TEXT_BYTES` (`MAX_GRAPH` for ComfyUI's graphs), and nothing is scanned twice,
so that 64 MB of text cost no more than finding their end. Pillow 12.3 has no such bounds, so its `Image.open().text`
and `getexif()` are not used: a tEXt chunk of 64 MB takes 190 MB, and a JPEG of 600 kB whose Exif entries overlap takes
1.1 GB and half a second, because opening it copies every entry (`test_hostile_images_use_little_time_and_memory`
holds both). It also stops at the pixels although texts may follow them, and reads UTF-8 in a tEXt chunk, which many
programs write, as Latin-1. AVIF is left to Pillow, because parsing its boxes needs a library.
"""

from __future__ import annotations

import io
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Literal

from ..storage.file_types import PNG_SIGNATURE

MAX_TEXT_BYTES = 250_000  # bytes; a long prompt and twenty concepts are 10,000
MAX_GRAPH = 2_000_000  # bytes of a graph of ComfyUI; 300 nodes are about 300,000
_MAX_CHUNKS = 20_000  # chunks or segments of one file; the texts stand before the pixels
_MAX_TEXTS = 60  # texts of one file that are read, empty and damaged ones too
_MAX_ENTRIES = 1000  # entries of one Exif directory (IFD)
_EXIF = b"Exif\0\0"
_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
ByteOrder = Literal["little", "big"]
_BYTE_ORDERS: dict[bytes, ByteOrder] = {b"II*\0": "little", b"MM\0*": "big"}  # by a TIFF's first bytes
_EXIF_IFD = 0x8769  # tags of TIFF 6.0 and Exif 2.3
_TAGS = {
    0x010D: "DocumentName",
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    0x9286: "UserComment",
    0x927C: "MakerNote",
}
_WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4}  # types of TIFF -> bytes
_GRAPHS = {
    *("prompt", "workflow", "smproj", "invokeai_graph", "invokeai_workflow"),
    *("UserComment", "Make", "Model", "ImageDescription"),
}
XMP = "XML:com.adobe.xmp"  # the key of XMP in a PNG; used here for every format
Reader = Callable[[int], "str | None"]
"""Reads one text of at most the given number of bytes. Raises TextTooLong; returns None for a damaged text."""


class TextTooLong(Exception):
    """Raised for a text of more than `MAX_TEXT_BYTES` bytes."""


def png_text(data: bytes, key: str) -> str | None:
    """Return a PNG's first tEXt, zTXt or iTXt text under `key`. Raises TextTooLong; damaged chunks are skipped."""
    prefix = key.encode() + b"\0"
    chunks = (chunk for chunk in _chunks(data) if chunk[0] in _DECODERS and data.startswith(prefix, chunk[1]))
    for kind, begin, end in itertools.islice(chunks, _MAX_TEXTS):
        text = _DECODERS[kind](memoryview(data)[begin + len(prefix) : end], MAX_TEXT_BYTES)
        if text is not None:
            return text
    return None


def all_texts(data: bytes) -> tuple[dict[str, str], frozenset[str]]:
    """Return the first text of each name, and the names of texts that are too long to read.

    Names: a PNG's keys, Exif's tags, "XML:com.adobe.xmp" and "JPEG comment". Damaged texts are skipped.
    """
    texts: dict[str, str] = {}
    too_long: set[str] = set()
    sources = ((name, read) for name, read in _sources(data) if name not in texts)
    for name, read in itertools.islice(sources, _MAX_TEXTS):
        try:
            text = read(MAX_GRAPH if name in _GRAPHS else MAX_TEXT_BYTES)
        except TextTooLong:
            too_long.add(name)
        else:
            if text:
                texts[name] = text
    return texts, frozenset(too_long)


def _sources(data: bytes) -> Iterator[tuple[str, Reader]]:
    if data.startswith(PNG_SIGNATURE):
        yield from _png_sources(data)
    elif data.startswith(b"\xff\xd8"):
        yield from _jpeg_sources(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        yield from _webp_sources(data)
    elif data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"mif1"):
        yield from _avif_sources(data)


# --- PNG --------------------------------------------------------------------------------------------------------------


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, begin and end of the content) of each complete chunk."""
    position = len(PNG_SIGNATURE) if data.startswith(PNG_SIGNATURE) else len(data)
    for _ in range(_MAX_CHUNKS):
        head = data[position : position + 8]
        end = position + 8 + int.from_bytes(head[:4], "big")
        if len(head) < 8 or end > len(data):
            return
        yield head[4:], position + 8, end
        position = end + 4


def _png_sources(data: bytes) -> Iterator[tuple[str, Reader]]:
    for kind, begin, end in _chunks(data):
        if kind == b"eXIf":
            yield from _exif_sources(data[begin : min(end, begin + 4 * MAX_GRAPH)])
        elif kind in _DECODERS:
            key_end = data.find(b"\0", begin, min(end, begin + 80))  # a key has up to 79 bytes
            if key_end > begin:
                content = memoryview(data)[key_end + 1 : end]
                yield data[begin:key_end].decode("latin-1"), _bound(_DECODERS[kind], content)


def _bound(decode: Callable[[memoryview, int], str | None], content: memoryview) -> Reader:
    return lambda limit: decode(content, limit)


def _plain(content: memoryview, limit: int) -> str:
    return _utf8_or_latin(bytes(_check_length(content, limit)))


def _utf8_or_latin(raw: bytes) -> str:
    """Decode UTF-8, else Latin-1, which the standard says; half of all programs write UTF-8, rarely valid by chance."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _decode_ztxt(content: memoryview, limit: int) -> str | None:
    raw = _inflate(content[1:], limit)
    return None if raw is None else _utf8_or_latin(raw)


def _decode_itxt(content: memoryview, limit: int) -> str | None:
    head = bytes(content[:1000])  # two flags, then language and translated keyword, each ended by a NUL
    language = head.find(b"\0", 2)
    translated = head.find(b"\0", language + 1)
    if language < 0 or translated < 0:
        return None
    rest = content[translated + 1 :]
    raw = _inflate(rest, limit) if head[0] else bytes(_check_length(rest, limit))
    return None if raw is None else raw.decode("utf-8", "replace")


_DECODERS = {b"tEXt": _plain, b"zTXt": _decode_ztxt, b"iTXt": _decode_itxt}


def _check_length(content: memoryview, limit: int) -> memoryview:
    if len(content) > limit:
        raise TextTooLong
    return content


def _inflate(content: memoryview, limit: int) -> bytes | None:
    """Inflate at most `limit` bytes, whatever the full size; None for damaged content."""
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(content[: 2 * limit], limit)
    except zlib.error:
        return None
    if inflate.unconsumed_tail:
        raise TextTooLong
    return raw if inflate.eof else None


# --- JPEG, WebP, AVIF -------------------------------------------------------------------------------------------------


def _jpeg_sources(data: bytes) -> Iterator[tuple[str, Reader]]:
    position = 2
    for _ in range(_MAX_CHUNKS):
        head = data[position : position + 4]
        length = int.from_bytes(head[2:], "big")
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA or length < 2:  # 0xDA: start of the pixels
            return
        begin, end = position + 4, position + 2 + length
        if head[1] == 0xE1 and data.startswith(_EXIF, begin):
            yield from _exif_sources(data[begin:end])
        elif head[1] == 0xE1 and data.startswith(_XMP_HEAD, begin):
            yield XMP, _bound(_plain, memoryview(data)[begin + len(_XMP_HEAD) : end])
        elif head[1] == 0xFE:
            yield "JPEG comment", _bound(_plain, memoryview(data)[begin:end])
        position = end


def _webp_sources(data: bytes) -> Iterator[tuple[str, Reader]]:
    position = 12
    for _ in range(_MAX_CHUNKS):
        head = data[position : position + 8]
        length = int.from_bytes(head[4:], "little")
        if len(head) < 8:
            return
        begin, end = position + 8, position + 8 + length
        if head[:4] == b"EXIF":
            yield from _exif_sources(data[begin : min(end, begin + 4 * MAX_GRAPH)])
        elif head[:4] == b"XMP ":
            yield XMP, _bound(_plain, memoryview(data)[begin:end])
        position = end + length % 2


def _avif_sources(data: bytes) -> Iterator[tuple[str, Reader]]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("AVIF",)) as image:
            exif, xmp = image.info.get("exif", b""), image.info.get("xmp", b"")
    except Exception:  # Pillow raises many kinds for broken files, and may be built without AVIF
        return
    yield from _exif_sources(exif[: 4 * MAX_GRAPH])
    yield XMP, _bound(_plain, memoryview(xmp))


# --- Exif -------------------------------------------------------------------------------------------------------------


def _exif_sources(exif: bytes) -> Iterator[tuple[str, Reader]]:
    """Yield the texts of a TIFF structure: of its first directory (IFD) and the Exif directory that it points to."""
    tiff = exif.removeprefix(_EXIF)
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return
    first = int.from_bytes(tiff[4:8], order)
    inner = None
    for tag, entry in _entries(tiff, first, order):
        if tag == _EXIF_IFD:
            inner = int.from_bytes(entry[8:], order)
        elif tag in _TAGS:
            yield _TAGS[tag], _tag_reader(tiff, entry, tag, order)
    if inner is not None:
        for tag, entry in _entries(tiff, inner, order):
            if tag in _TAGS:
                yield _TAGS[tag], _tag_reader(tiff, entry, tag, order)


def exif_orientation(exif: bytes) -> int | None:
    """Return the orientation of an image from its Exif: 1 is upright, 2 to 8 are not; None where it says nothing."""
    start = 0
    while exif.startswith(_EXIF, start):
        start += len(_EXIF)
    exif = exif[start:]
    order = _BYTE_ORDERS.get(exif[:4])
    if order is None:
        return None
    for tag, entry in _entries(exif, int.from_bytes(exif[4:8], order), order):
        length = _WHOLE_NUMBERS.get(int.from_bytes(entry[2:4], order))
        if tag == 0x0112 and length and int.from_bytes(entry[4:8], order) == 1:
            return int.from_bytes(entry[8 : 8 + length], order)
    return None


def _entries(tiff: bytes, at: int, order: ByteOrder) -> Iterator[tuple[int, bytes]]:
    """Yield (tag, the 12 bytes of its entry: tag, type, count, value or its offset) of the directory at `at`."""
    for i in range(min(int.from_bytes(tiff[at : at + 2], order), _MAX_ENTRIES)):
        entry = tiff[at + 2 + 12 * i : at + 14 + 12 * i]
        if len(entry) < 12:
            return
        yield int.from_bytes(entry[:2], order), entry


def _tag_reader(tiff: bytes, entry: bytes, tag: int, order: ByteOrder) -> Reader:
    def read(limit: int) -> str:
        length, begin = int.from_bytes(entry[4:8], order), int.from_bytes(entry[8:], order)
        if length > 2 * limit:  # 2 bytes per character in UTF-16
            raise TextTooLong
        raw = entry[8 : 8 + length] if length <= 4 else tiff[begin : begin + length]
        return _decode_user_comment(raw) if tag == 0x9286 else _utf8_or_latin(raw).strip("\0")

    return read


def _decode_user_comment(raw: bytes) -> str:
    """Decode Exif's UserComment, whose first 8 bytes name the encoding. Programs differ in the byte order of UTF-16."""
    kind, text = raw[:8].upper(), raw[8:]
    if kind == b"UNICODE\0":
        return _utf16(text).strip("\0")
    if kind == b"JIS\0\0\0\0\0":
        return _japanese(text).strip("\0")
    return _utf8_or_latin(text if kind in (b"ASCII\0\0\0", bytes(8)) else raw).strip("\0")


def _utf16(text: bytes) -> str:
    if text[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return text.decode("utf-16", "replace")
    high, low = text[::2].count(0), text[1::2].count(0)
    if not high and not low and len(text) > 1:  # some programs write UTF-8 there
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            pass
    big = high >= low  # in big-endian, English letters have a zero byte first
    return text.decode("utf-16-be" if big else "utf-16-le", "replace")


def _japanese(text: bytes) -> str:
    """Decode JIS X 0208, as Exif says, or an encoding that programs label so."""
    for encoding in ("utf-8",) if text.isascii() and b"\x1b" not in text else ("iso2022_jp", "shift_jis", "euc_jp"):
        try:
            return text.decode(encoding)
        except UnicodeDecodeError:
            continue
    return text.decode("utf-8", "replace")
