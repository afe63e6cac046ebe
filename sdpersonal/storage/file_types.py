"""Recognise a file's type by its first bytes alone, never by its name. Only `recognise` decides it.

The types are tried in this order; the first that fits decides:

    safetensors     bytes 4-7 are zero (a header below 4 GB), byte 8 is `{`, byte 9 is `"`, `}` or white space. It is
                    tried first: the low bytes of its length can be any other format's first bytes (a header of 640
                    bytes begins `80 02`, as a pickle does). Where bytes 0-1 are a pickle's, the header must end
                    within the file, unless byte 3 is zero too.
    image           the table _MAGIC; RIFF....WEBP; a `ftyp` box of HEIC or AVIF; BMP by the size of its second header
    zip             PK 03 04, PK 05 06 (empty), PK 07 08 (in parts); torch >= 1.6 saves such
    pickle          80 and a protocol of 2 to 5; protocols 0 and 1 have no first bytes of their own: instructions that
                    a stack machine could run, up to STOP or the end of the bytes checked
    others          the table _MAGIC: archives, models of other programs, documents, videos, programs
    placeholders    the text of a Git-LFS, Xet, git-annex or DVC pointer, an aria2 control file, zeros alone, nothing
    text            a web page or XML, JSON, other text

Which format of embedding or LoRA a safetensors file or pickle holds is decided by its tensors' names, in
`concepts.importers`.
Sources: safetensors README (format); CPython `pickletools`; PKWARE APPNOTE 4.3; ISO/IEC 14496-12 (`ftyp`);
git-lfs docs/spec.md; the formats' own specifications for their first bytes.
"""

from __future__ import annotations

import io
import pickletools
import re
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError, printable

Group = Literal["safetensors", "image", "zip", "pickle", "archive", "other", "placeholder", "text", "unknown"]

LOOKED_AT = 65_536  # bytes from which the type is decided
_AGAIN = "Fetch the file again: its page may ask for a login or an agreement."
_UNPACK = "Unpack it and give the folder."
_NOT_THAT = "A concept is in a .safetensors, .pt or .bin file."
_MODEL = "Look for a .safetensors file of it."
_CUT = "Fetch the file again and let it finish."
_LFS = "Run `git lfs pull` where it was cloned, or fetch the file itself from its page."


@dataclass(frozen=True)
class FileType:
    """One type of file. name: short, `PNG`; what: in a sentence that begins with the file's name, `a PNG image`."""

    group: Group
    name: str
    what: str
    hint: str = _NOT_THAT

    def refusal(self, file: str) -> UserError:
        """Build the error for a file of this type where a concept is wanted."""
        return UserError(f"{printable(file)} is refused: it is {self.what}.", self.hint)


SAFETENSORS = FileType("safetensors", "safetensors", "a safetensors file")
ZIP = FileType("zip", "zip", "a zip archive", _UNPACK)
PICKLE = FileType("pickle", "pickle", "a pickle")
UNKNOWN = FileType("unknown", "unknown", "no safetensors, torch or image file that is known here")
EMPTY = FileType("placeholder", "empty", "empty", _CUT)
ZEROS = FileType("placeholder", "zeros", "nothing but zeros: a download that has not finished", _CUT)
LFS = FileType("placeholder", "Git-LFS pointer", "a Git-LFS pointer: the file itself was not downloaded", _LFS)


def _image(name: str) -> FileType:
    return FileType("image", name, f"a {name} image", "Photos to train on go into a folder.")


def _archive(name: str) -> FileType:
    return FileType("archive", name, f"a {name} archive", _UNPACK)


def _other(name: str, what: str, fix: str = _NOT_THAT) -> FileType:
    return FileType("other", name, what, fix)


_JP2 = _image("JPEG 2000")
_JXL = _image("JPEG XL")
_TIFF = _image("TIFF")
_EPS = _other("EPS", "an EPS or PostScript file")
_ZSTD = _archive("zstd")

# (offset, bytes there, type). Magic numbers of two bytes are in _weak, which checks more bytes.
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAGIC: tuple[tuple[int, bytes, FileType], ...] = (
    (0, PNG_SIGNATURE, _image("PNG")),
    (0, b"\xff\xd8\xff", _image("JPEG")),
    (0, b"GIF87a", _image("GIF")),
    (0, b"GIF89a", _image("GIF")),
    (0, b"II*\0", _TIFF),
    (0, b"MM\0*", _TIFF),
    (0, b"II+\0", _TIFF),
    (0, b"MM\0+", _TIFF),
    (0, b"8BPS", _image("Photoshop")),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", _JP2),
    (0, b"\xff\x4f\xff\x51", _JP2),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", _JXL),
    (0, b"icns", _image("ICNS")),
    (0, b"DDS ", _image("DDS")),
    (0, b"qoif", _image("QOI")),
    (0, b"\x76\x2f\x31\x01", _image("OpenEXR")),
    (0, b"SIMPLE  =", _image("FITS")),
    (0, b"PK\x03\x04", ZIP),
    (0, b"PK\x05\x06", ZIP),
    (0, b"PK\x07\x08", ZIP),
    (0, b"7z\xbc\xaf\x27\x1c", _archive("7z")),
    (0, b"Rar!\x1a\x07", _archive("RAR")),
    (0, b"\xfd7zXZ\0", _archive("xz")),
    (0, b"\x28\xb5\x2f\xfd", _ZSTD),
    (0, b"\x04\x22\x4d\x18", _archive("LZ4")),
    (257, b"ustar", _archive("tar")),
    (0, b"GGUF", _other("GGUF", "a GGUF model", _MODEL)),
    (0, b"ggml", _other("GGML", "a GGML model", _MODEL)),
    (0, b"lmgg", _other("GGML", "a GGML model", _MODEL)),
    (0, b"\x89HDF\r\n\x1a\n", _other("HDF5", "an HDF5 file, as Keras saves models", _MODEL)),
    (0, b"\x93NUMPY", _other("NumPy", "a NumPy array", _MODEL)),
    (0, b"PAR1", _other("Parquet", "a Parquet table")),
    (0, b"SQLite format 3\0", _other("SQLite", "an SQLite database")),
    (0, b"%PDF-", _other("PDF", "a PDF")),
    (0, b"%!PS", _EPS),
    (0, b"\xc5\xd0\xd3\xc6", _EPS),
    (0, b"\x1a\x45\xdf\xa3", _other("Matroska", "a video")),
    (0, b"OggS", _other("Ogg", "a sound or video file")),
    (0, b"fLaC", _other("FLAC", "a sound file")),
    (0, b"ID3", _other("MP3", "a sound file")),
    (0, b"\x7fELF", _other("ELF", "a program")),
    (0, b"\xcf\xfa\xed\xfe", _other("Mach-O", "a program")),
    (0, b"L\0\0\0\x01\x14\x02\0", _other("shortcut", "a Windows shortcut", "Give the file that it leads to.")),
    (0, b"\0\x05\x16\x07", _other("AppleDouble", "what macOS keeps beside a file, not the file",
                                 "Give the file whose name has no ._ before it.")),
)  # fmt: skip

# Patterns of a text's beginning -> its type. A byte order mark and leading white space are removed before.
_PLACEHOLDERS = (
    (re.compile(rb"version https://(git-lfs\.github\.com|hawser\.github\.com)/spec/"), LFS),
    (re.compile(rb"# xet version "), FileType("placeholder", "Xet pointer", LFS.what.replace("Git-LFS", "Xet"), _LFS)),
    (re.compile(rb"\A[^\n]{0,2000}/annex/objects/"),
     FileType("placeholder", "git-annex pointer", "a git-annex pointer: the file itself was not downloaded",
              "Run: git annex get FILE")),
    (re.compile(rb"(outs:|md5:|wdir:)[ \n\r]"),
     FileType("placeholder", "DVC pointer", "a DVC pointer: the file itself was not downloaded", "Run: dvc pull")),
    (re.compile(rb"\[InternetShortcut\]", re.IGNORECASE),
     FileType("placeholder", "link", "a link to a page, not the file", _AGAIN)),
    (re.compile(rb"d\d+:(announce|created by|info|comment|creation date)"),
     FileType("placeholder", "torrent", "a torrent, not the file", "Open it in a BitTorrent program first.")),
)  # fmt: skip
_MARKUP = re.compile(rb"<(!doctype html|html|head|body|script|meta|title|div|p>|!--)", re.IGNORECASE)
_BOXES_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AFTER_BRACE = (b"", b'"', b"}", b" ", b"\t", b"\r", b"\n")
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # bytes


def recognise(head: bytes, size: int | None = None) -> FileType:
    """Return the type of a file of `size` bytes. head: its first LOOKED_AT bytes, or all of it. Never raises."""
    whole = len(head) if size is None else size
    head = bytes(head[:LOOKED_AT])
    if not whole:
        return EMPTY
    if _is_safetensors(head, whole):
        return SAFETENSORS
    for offset, magic, kind in _MAGIC:
        if head.startswith(magic, offset):
            return kind
    return _weak(head) or _pickle(head, whole) or _text(head, whole) or UNKNOWN


def _is_safetensors(head: bytes, whole: int) -> bool:
    if head[4:8] != bytes(4) or head[8:9] != b"{" or head[9:10] not in _AFTER_BRACE:
        return False
    fits = 8 + int.from_bytes(head[:8], "little") <= whole
    return fits or head[3] == 0 or not _begins_as_pickle(head)


def _weak(head: bytes) -> FileType | None:
    """Recognise formats whose first bytes are so few or so common that more bytes must be checked."""
    if head[:4] == b"RIFF":
        return _image("WebP") if head[8:12] == b"WEBP" else _other("RIFF", "a sound or video file")
    if head[4:8] == b"ftyp":
        return _boxes(head)
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return _image("BMP")
    if head[:4] in (b"\0\0\x01\0", b"\0\0\x02\0") and head[4:6] != b"\0\0" and head[5:6] == b"\0":
        return _image("icon")
    if re.match(rb"P[1-7][\s#]", head) and re.match(rb"P[1-7]\s+(#[^\n]*\n\s*)*(\d+\s+\d|WIDTH)", head):
        return _image("PNM")
    if head[:2] == b"\xff\x0a":
        return _JXL
    if head[:3] == b"\x1f\x8b\x08":
        return _archive("gzip")
    if re.match(rb"BZh[1-9]1AY&SY", head):
        return _archive("bzip2")
    if head[:2] == b"MZ" and len(head) > 64 and head[60:64] != bytes(4):
        return _other("EXE", "a Windows program")
    if re.match(rb"\xff[\xfb\xf3\xf2]", head):
        return _other("MP3", "a sound file")
    return None


def _boxes(head: bytes) -> FileType:
    length = int.from_bytes(head[:4], "big")
    brands = {head[at : at + 4] for at in (8, *range(16, min(length, 256, len(head)), 4))}
    if brands & {b"avif", b"avis"}:
        return _image("AVIF")
    return _image("HEIC") if brands & _BOXES_HEIC else _other("MP4", "a video")


# --- pickles ----------------------------------------------------------------------------------------------------------


def _begins_as_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _pickle(head: bytes, whole: int) -> FileType | None:
    return PICKLE if _begins_as_pickle(head) or _runs(head, whole) else None


_FEWEST = 3  # instructions, where their end lies beyond the window: a text rarely parses as so many


class _Window(io.BytesIO):
    """The first bytes of a file; ended: a read wanted more than they hold."""

    ended = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.ended |= size is not None and len(data) < size
        return data

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.ended |= not line.endswith(b"\n")
        return line


def _runs(head: bytes, whole: int) -> bool:
    """Return whether the bytes are a program for pickle's stack machine, as protocols 0 and 1 are. Runs nothing."""
    window, count = _Window(head), 0
    depths = [0]  # stack sizes since each MARK
    memo: set[object] = set()
    try:
        for opcode, argument, _ in pickletools.genops(window):
            count += 1
            _step(opcode, depths)
            _remember(opcode.name, argument, memo)
            if opcode.name == "STOP":
                return depths == [0]
    except IndexError:
        return False
    except (ValueError, OverflowError):  # an invalid instruction or argument, or one cut by the window
        return window.ended and whole > len(head) and count >= _FEWEST
    return False


def _step(opcode: pickletools.OpcodeInfo, depths: list[int]) -> None:
    """Track what an instruction pops and pushes. Raises IndexError where it pops from an empty stack."""
    popped = opcode.stack_before
    if opcode.name == "MARK":
        depths.append(0)
        return
    if pickletools.markobject in popped:
        depths.pop()
        popped = popped[: popped.index(pickletools.markobject)]
    depths[-1] -= len(popped)
    if depths[-1] < 0:
        raise IndexError
    depths[-1] += len(opcode.stack_after)


def _remember(name: str, argument: object, memo: set[object]) -> None:
    """Track the memo. Raises IndexError where an entry is set twice, or read before it is set."""
    if name == "MEMOIZE":
        memo.add(len(memo))
    elif name.endswith(("PUT", "GET")) and (argument in memo) is name.endswith("PUT"):
        raise IndexError
    elif name.endswith("PUT"):
        memo.add(argument)


# --- text and placeholders --------------------------------------------------------------------------------------------


def _text(head: bytes, whole: int) -> FileType | None:
    if not head.strip(b"\0"):
        return ZEROS
    if head[:2] == b"\0\x01" and whole < 1_000_000 and head[2:6] in (b"\0\0\0\0", b"\0\0\0\x01"):
        return FileType("placeholder", "aria2", "a control file of aria2, whose download has not finished", _CUT)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = head.decode("utf-16", "ignore").encode("utf-8", "ignore")
    else:
        text = head.removeprefix(b"\xef\xbb\xbf")
    text = text.lstrip()
    for pattern, kind in _PLACEHOLDERS:
        if pattern.match(text):
            return kind
    if not _is_text(text):
        return None
    beginning = printable(" ".join(text.decode("utf-8", "ignore").split())[:60], 60)
    if _MARKUP.match(text):
        return FileType("text", "HTML", "a web page, not the file", _AGAIN)
    if text[:5] == b"<?xml" or re.match(rb"<[A-Za-z][\w:.-]*[\s/>]", text):
        return FileType("text", "XML", f"XML, not the file; it begins {beginning}", _AGAIN)
    if text[:1] in (b"{", b"["):
        return FileType("text", "JSON", f"JSON text, not the file; it begins {beginning}", _AGAIN)
    return FileType("text", "text", f"text, not the file; it begins {beginning}", _AGAIN)


def _is_text(text: bytes) -> bool:
    """Return whether the text is UTF-8 without control characters; the last character may be cut."""
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(text) - 4:
            return False
        decoded = text[: error.start].decode("utf-8")
    return not re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", decoded)
