"""Change good files at random: their bytes, the JSON in them, the instructions of their pickles, their text.

Every function takes the random generator first, so that a seed repeats the file. Sums that a reader compares are made
anew where a forger would make them anew: behind them is what he wants to reach.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RAW = re.compile(r'"@@raw([0-9]+)@@"')
# JSON that Python's own writer does not write; in a tree it is "@@rawN@@".
_RAW_JSON = (
    "1" + "0" * 400,
    "9" * 5000,
    "-" + "9" * 25,
    "1e999",
    "NaN",
    "-Infinity",
    "[" * 3000 + "]" * 3000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    '{"a":1,"a":2}',
    '"\\ud800"',
    "0.1e-400",
)
_TEXTS = (
    "",
    "\ud800",
    "\udfff\ud800",
    "\0",
    "\x1b[31m",
    "a" * 5000,
    "../../x",
    "/etc/passwd",
    "<a>\n<b>",
    "\u202e",
    "{}",
)
_TEXTS += (
    "NaN",
    "null",
    "[1]",
    "[" * 2000,
    '{"a":1}',
    "0x" + "f" * 64,
    "0" * 64,
    "1" * 5000,
    "data:image/png;base64,AAAA",
)
_TEXTS += (
    "a\nb",
    ".lora_magnitude_vector" * 60 + "\nX",
    "(a+)+$",
    "*",
    "__a__",
    "<me/duck>",
    "{a|b}",
    "9" * 500,
    "é" * 300,
)
_VALUES: tuple[object, ...] = (None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 0.5, -0.0, 1e308, 1e-320)
_VALUES += ([], {}, [[]], [None], {"": None}, *_TEXTS, *(f"@@raw{i}@@" for i in range(len(_RAW_JSON))))


def spoil_bytes(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Flip, cut, repeat and insert bytes, most of them where the structure is. others: files to take pieces of."""
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not spoiled:
            break
        _spoil_once(rng, spoiled, others)
    return bytes(spoiled)


def _spoil_once(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    at = _place(rng, len(data))
    match rng.randrange(9):
        case 0 | 1 | 2:
            data[at] = rng.randrange(256)
        case 3:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80"))
        case 4:
            del data[at : at + rng.choice((1, 3, 20, 400, 100_000))]
        case 5:
            other = rng.choice(others)
            begin = _place(rng, len(other)) if other else 0
            data[at : at + rng.choice((0, 8, 200))] = other[begin : begin + rng.choice((1, 8, 60, 2000))]
        case 6:
            data[at:at] = data[at : at + rng.choice((1, 30, 500))]
        case 7:
            digits = [i for i in range(min(len(data), 4000)) if 48 <= data[i] <= 57]
            if digits:
                data[rng.choice(digits)] = rng.choice(b"0123456789-.eE")
        case 8:
            data[at:at] = data[at : at + rng.choice((1, 8, 30))] * rng.choice((2, 50, 500))


def _place(rng: random.Random, size: int) -> int:
    """Return a position: six in ten near the beginning, three near the end."""
    end = min(size, 3000)
    where = rng.random()
    if where < 0.6:
        return rng.randrange(end)
    return size - 1 - rng.randrange(end) if where < 0.9 else rng.randrange(size)


# --- JSON and text ----------------------------------------------------------------------------------------------------


def spoil_json(rng: random.Random, text: str) -> str:
    """Change one or more values, keys or branches of a JSON text, also in JSON that stands in its strings."""
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = _changed(rng, tree)
    return written(tree)


def written(tree: object) -> str:
    """Write a tree as compact JSON, with the words that Python does not write."""
    text = json.dumps(tree, separators=(",", ":"))
    return _RAW.sub(lambda match: _RAW_JSON[int(match[1][-3:]) % len(_RAW_JSON)], text) if "@@raw" in text else text


def _changed(rng: random.Random, node: object, depth: int = 0) -> object:
    deeper = rng.random() < (0.95 if depth < 2 else 0.7)
    if isinstance(node, dict) and node and deeper:
        key = rng.choice(list(node))
        match rng.randrange(12):
            case 0:
                del node[key]
            case 1:
                node[_new_key(rng, key)] = node.pop(key)
            case 2:
                node[_new_key(rng, key)] = _value(rng, node[key])
            case _:
                node[key] = _changed(rng, node[key], depth + 1)
        return node
    if isinstance(node, list) and node and deeper:
        at = rng.randrange(len(node))
        match rng.randrange(10):
            case 0:
                del node[at]
            case 1:
                node[at:at] = [node[at]] * rng.choice((1, 3, 1000))
            case _:
                node[at] = _changed(rng, node[at], depth + 1)
        return node
    if isinstance(node, str) and node[:1] in ("{", "[") and rng.random() < 0.8:
        try:
            return spoil_json(rng, node)
        except (ValueError, RecursionError):
            return node
    return _value(rng, node)


def _new_key(rng: random.Random, key: str) -> str:
    text = rng.choice((key + rng.choice(_TEXTS), key[: rng.randrange(len(key) + 1)], rng.choice(_TEXTS)))
    return text if not text.startswith("@@raw") else key


def _value(rng: random.Random, old: object) -> object:
    kind = rng.random()
    if isinstance(old, str) and kind < 0.4:
        return spoil_text(rng, old)
    if isinstance(old, int | float) and kind < 0.4:
        return rng.choice((old + 1, old - 1, -old, old * 2, old * 1000, rng.randrange(2**33), old // 2))
    return copy.deepcopy(rng.choice(_VALUES))  # what is put into a tree is changed there later


def spoil_text(rng: random.Random, text: str) -> str:
    """Cut, repeat or insert in a text."""
    at = rng.randrange(len(text) + 1)
    match rng.randrange(5):
        case 0:
            return text[:at] + rng.choice(_TEXTS) + text[at:]
        case 1:
            return text[:at] + text[at + rng.choice((1, 5, 50)) :]
        case 2:
            return text[:at] + text[at : at + rng.choice((1, 4, 20))] * rng.choice((2, 50, 400)) + text[at:]
        case 3:
            return (
                text[:at] + chr(rng.choice((0, 9, 10, 13, 27, 92, 123, 125, 0x85, 0xD800, 0x202E, 0x1F600))) + text[at:]
            )
        case _:
            return text[:at] + rng.choice("<>{}[]()|:,=_*?\\\"'#%&~^0123456789-+.eE") + text[at + 1 :]


def encoded(text: str, rng: random.Random) -> bytes:
    """Encode a text, with its lone surrogates, as UTF-8, and one in thirty as UTF-16 or cut in a character."""
    match rng.randrange(60):
        case 0:
            return text.encode("utf-16", "surrogatepass")
        case 1:
            return text.encode("utf-8", "surrogatepass") + b"\xc3"
        case _:
            return text.encode("utf-8", rng.choice(("surrogatepass", "replace")))


# --- safetensors ------------------------------------------------------------------------------------------------------

_SUM, _IDENTITY = "sdpersonal.header_sha256", "modelspec.hash_sha256"


def spoil_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change the JSON of a safetensors file's header, or its numbers; make the sums of our own files anew."""
    length = int.from_bytes(data[:8], "little")
    header, payload = data[8 : 8 + length].decode(), data[8 + length :]
    native = f'"{_SUM}"' in header and rng.random() < 0.9
    forged_identity = ""
    if rng.random() < 0.2:
        payload = _other_numbers(rng, payload)
        forged_identity = hashlib.sha256(payload).hexdigest()
    if not forged_identity or rng.random() < 0.5:
        header = spoil_json(rng, header)
    if native:
        header = _sealed(header, forged_identity)
    raw = header.encode()
    return struct.pack("<Q", len(raw)) + raw + payload


def _sealed(header: str, identity: str) -> str:
    """Return the header with its own sum, as `concept_to_bytes` makes it, and the identity of other numbers."""
    if identity:
        header = re.sub(rf'("{_IDENTITY}": *"0x)[0-9a-f]{{64}}"', rf'\g<1>{identity}"', header, count=1)
    header = re.sub(rf'"{_SUM}": *"[0-9a-f]{{64}}"', f'"{_SUM}":"{"0" * 64}"', header, count=1)
    raw = header.encode()
    digest = hashlib.sha256(struct.pack("<Q", len(raw)) + raw).hexdigest()
    return header.replace(f'"{_SUM}":"{"0" * 64}"', f'"{_SUM}":"{digest}"', 1)


def _other_numbers(rng: random.Random, payload: bytes) -> bytes:
    if not payload:
        return payload
    changed = bytearray(payload)
    at = rng.randrange(len(changed)) & ~3
    changed[at : at + 4] = rng.choice(
        (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", bytes(4), b"\0\x7c\0\x7c")
    )
    return bytes(changed[: len(payload)]) if rng.random() < 0.9 else bytes(changed[:-4])


# --- pickles ----------------------------------------------------------------------------------------------------------

# Instructions that a file of torch has no use for, or that ask for much.
_INSTRUCTIONS = (
    *(b"cos\nmkdir\n", b"cposix\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\nset\n", b"ccollections\nOrderedDict\n"),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch.nn.modules.container\nParameterDict\n",
        b"ctorch\nLongStorage\n",
    ),
    *(
        b"R",
        b"b",
        b"\x81",
        b"\x92",
        b"\x93",
        b"o",
        b"(ios\nmkdir\n",
        b"\x82\x01",
        b"Q",
        b"P1\n",
        b"\x90",
        b"\x8f",
        b"\x91",
    ),
    *(
        b"(",
        b"t",
        b"l",
        b"d",
        b"e",
        b"u",
        b"a",
        b"s",
        b"0",
        b"1",
        b"2",
        b"]",
        b"}",
        b")",
        b"N",
        b"\x88",
        b"\x89",
        b"\x94",
    ),
    *(b"h\0", b"h\1", b"q\0", b"q\1", b"j\xff\xff\xff\x7f", b"r\0\0\0\0", b"g0\n", b"p0\n", b"\x85", b"\x86", b"\x87"),
    *(b"I" + b"9" * 400 + b"\n", b"L" + b"9" * 6000 + b"L\n", b"\x8a\xff" + b"\xff" * 255, b"\x8b\xff\xff\xff\x7f"),
    *(
        b"F1e999\n",
        b"Fnan\n",
        b"G\x7f\xf8\0\0\0\0\0\0",
        b"X\xff\xff\xff\xff",
        b"X\3\0\0\0\xed\xa0\x80",
        b"\x8d" + b"\xff" * 8,
    ),
    *(
        b"V\\ud800\n",
        b"S'a'\n",
        b"\x96\4\0\0\0\0\0\0\0aaaa",
        b"\x97",
        b"\x98",
        b"\x95" + b"\xff" * 8,
        b"\x80\x05",
        b".",
    ),
)


@functools.lru_cache(maxsize=256)
def _programs(data: bytes) -> tuple[tuple[bytes, ...], bytes, tuple[tuple[str, bytes], ...]] | None:
    """Return (instructions, what follows, the zip's other members) of a torch file or a pickle; None for others."""
    members: tuple[tuple[str, bytes], ...] = ()
    program = data
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if not programs:
                return None
            program = archive.read(programs[0])
            others = [name for name in archive.namelist() if name != programs[0]]
            members = ((programs[0], b""), *((name, archive.read(name)) for name in others))
    elif data[:1] not in (b"\x80", b"(", b"c", b"]", b"}"):
        return None
    pieces, file = [], io.BytesIO(program)
    try:
        for _ in range(5):
            start = file.tell()
            places = [position for _, _, position in pickletools.genops(file)]
            pieces += [program[a:b] for a, b in zip(places, [*places[1:], file.tell()], strict=True)]
            if file.tell() == start or members:
                break
    except Exception:  # what follows the last pickle are the numbers
        file.seek(start)
    return tuple(pieces), program[file.tell() :], members


def spoil_pickle(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Change the instructions of a pickle, in its zip where it has one."""
    parsed = _programs(data)
    if parsed is None:
        return spoil_bytes(rng, data, others)
    pieces, rest, members = list(parsed[0]), parsed[1], parsed[2]
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        _spoil_instructions(rng, pieces)
    program = b"".join(pieces) + rest
    if not members:
        return program
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)  # without the time, so that a seed repeats the file
            archive.writestr(info, content if name != members[0][0] else program)
    return out.getvalue()


def _spoil_instructions(rng: random.Random, pieces: list[bytes]) -> None:
    at = rng.randrange(len(pieces) + 1)
    match rng.randrange(8):
        case 0 | 1:
            pieces.insert(at, rng.choice(_INSTRUCTIONS))
        case 2:
            del pieces[at : at + rng.choice((1, 1, 3))]
        case 3 if at < len(pieces):
            pieces[at] = rng.choice(_INSTRUCTIONS)
        case 4 if pieces:
            pieces.insert(at, rng.choice(pieces))
        case 5:
            pieces[at:at] = pieces[at : at + rng.choice((1, 3, 10))] * rng.choice((2, 20, 2000))
        case 6 if at < len(pieces) and len(pieces[at]) > 1:
            changed = bytearray(pieces[at])
            changed[rng.randrange(1, len(changed))] = rng.randrange(256)
            pieces[at] = bytes(changed)
        case 7:
            pieces[at:at] = [rng.choice(_INSTRUCTIONS) for _ in range(rng.choice((3, 10, 60)))]


# --- PNG --------------------------------------------------------------------------------------------------------------


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split a PNG into (kind, content) of its chunks."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Join chunks into a PNG with right sums."""
    parts = [PNG_SIGNATURE]
    for kind, content in chunks:
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(parts)


def spoil_png(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Change the texts of a PNG, as JSON where they are, behind right sums; other images and chunks by their bytes."""
    if not data.startswith(PNG_SIGNATURE):
        return spoil_bytes(rng, data, others)
    chunks = png_chunks(data)
    texts = [number for number, (kind, _) in enumerate(chunks) if kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf")]
    number = rng.choice(texts) if texts and rng.random() < 0.85 else rng.randrange(len(chunks))
    kind, content = chunks[number]
    match rng.randrange(10):
        case 0:
            chunks.insert(number, chunks[number])
        case 1:
            del chunks[number]
        case 2:
            chunks[number] = (rng.choice((b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"IDAT", b"iCCP")), content)
        case 3:
            chunks[number] = (kind, spoil_bytes(rng, content, others))
        case _:
            chunks[number] = (kind, _spoil_png_text(rng, kind, content, others))
    return png_of(chunks)


def _spoil_png_text(rng: random.Random, kind: bytes, content: bytes, others: list[bytes]) -> bytes:
    key, _, text = content.partition(b"\0")
    begin = b""
    if kind == b"iTXt" and text[:2] == b"\0\0":
        begin, text = text[:4], text[4:]
    elif kind != b"tEXt":
        return spoil_bytes(rng, content, others)
    return key + b"\0" + begin + spoil_document(rng, text)


def spoil_document(rng: random.Random, text: bytes) -> bytes:
    """Change a text file: as JSON or lines of JSON where it is, else as text."""
    if rng.random() < 0.1:
        return spoil_bytes(rng, text, [text])
    words = text.decode("utf-8", "surrogateescape")
    try:
        if words[:1] in ("{", "["):
            return encoded(spoil_json(rng, words), rng)
    except (ValueError, RecursionError):
        lines = words.splitlines(keepends=True)
        if len(lines) > 1 and lines[0][:1] in ("{", "["):
            at = rng.randrange(len(lines))
            lines[at] = (
                spoil_document(rng, lines[at].encode("utf-8", "surrogateescape")).decode("utf-8", "replace") + "\n"
            )
            return "".join(lines).encode("utf-8", "replace")
    for _ in range(rng.choice((1, 1, 2, 5))):
        words = spoil_text(rng, words)
    return encoded(words.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), rng)
