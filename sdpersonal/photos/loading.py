"""Load a folder of photos as a checked training set: upright, sRGB, opaque, scaled, cropped. Nothing is written.

Unusable files are reported with the reason, and the others are used. Files are read once, in order of their names; a
photo that occurs twice is used once. Only pixels, a hash, and the name for display are kept of a file; no EXIF.

A `01.txt` beside `01.jpg` captions what else is in that photo (see `captions`): `{} in the snow`. The concept does not
absorb what the caption names. A `01.crop.json` says which square of it is used (see `crops`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import CropMode
from ..config.text_checks import check_path
from ..errors import UserError, printable
from .captions import Captions, Refused
from .crops import OwnCrop, OwnCrops, decode_square
from .decode import FORMATS, MIN_SIDE, UNPACK_HINT, UnusablePhoto, decode, detect_format, shorter_side
from .smart_crop import find_subject

MAX_PHOTOS = 500
MAX_BYTES = 200_000_000  # of one file
FEW_PHOTOS = 3  # fewer photos than this cause a warning
_REPORT_LINES = 20

# Files beside photos that are not photos: captions, sidecars of cameras and phones, files of file managers.
_SIDECAR_SUFFIXES = {".txt", ".caption", ".json", ".jsonl", ".csv", ".xmp", ".aae", ".md", ".ini", ".db"}
# O_NONBLOCK: a FIFO in a photo's place does not block; O_NOFOLLOW: a link does not lead out of the folder.
_OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo of the set.

    name: for display, never to be used as a path; pixels: uint8 (H, W, 3), upright sRGB, min(H, W) == size;
    sha256: of the file's bytes, hex; crop: (left, top) of its square in `pixels`; notes: remarks for the user;
    captions: sentences with `{}` for the subject, if a text file beside the photo has some; original_size:
    (H, W) before scaling; own_crop: the crop by hand that `pixels` are, if a file beside the photo has one.
    """

    name: str
    pixels: np.ndarray = field(repr=False)
    sha256: str
    crop: tuple[int, int]
    notes: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    original_size: tuple[int, int] = (0, 0)
    own_crop: OwnCrop | None = None

    def square(self, left_top: tuple[int, int] | None = None) -> np.ndarray:
        """Return the square at `left_top` (default: `crop`), a copy: uint8 (size, size, 3)."""
        left, top = left_top or self.crop
        height, width = self.pixels.shape[:2]
        size = min(height, width)
        if not (0 <= left <= width - size and 0 <= top <= height - size):
            raise ValueError(f"no square of {size} at {(left, top)} in {width}x{height}")
        return self.pixels[top : top + size, left : left + size].copy()


@dataclass(frozen=True)
class SkippedFile:
    """A file that cannot be used; `name` and `reason` form a sentence."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """Photos in order of their names; `duplicates` are files that hold the same photo as an earlier one;
    `ignored` counts files that are obviously not photos (captions, .DS_Store)."""

    photos: tuple[Photo, ...]
    skipped: tuple[SkippedFile, ...] = ()
    duplicates: tuple[SkippedFile, ...] = ()
    ignored: int = 0

    @property
    def identity(self) -> str:
        """Return the sha256 (hex) of the photos' hashes, captions and crops by hand in order: equal for equal files of
        any names."""
        parts = [
            (photo.sha256, *photo.captions, *([tuple(photo.own_crop)] if photo.own_crop else []))
            for photo in self.photos
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def report(self) -> str:
        """Summarize the set in a few lines of plain text."""
        captioned = sum(bool(photo.captions) for photo in self.photos)
        counts = (
            _count_text(len(self.photos), "photo"),
            f"{captioned} with captions" if captioned else "",
            f"{_count_text(len(self.skipped), 'unusable file')}" if self.skipped else "",
            f"{len(self.duplicates)} there twice" if self.duplicates else "",
            f"{_count_text(self.ignored, 'other file')} ignored" if self.ignored else "",
        )
        details = [f"  {file.name} {file.reason}" for file in self.skipped + self.duplicates]
        details += [f"  {photo.name}: {', '.join(photo.notes)}" for photo in self.photos if photo.notes]
        if len(details) > _REPORT_LINES:
            details[_REPORT_LINES:] = [f"  and {len(details) - _REPORT_LINES} more"]
        return "\n".join([", ".join(filter(None, counts)), *details])


def load_photos(folder: Path, size: int, crop: CropMode = "center", kind: str = "object") -> PhotoSet:
    """Load a folder's photos, with the shorter side scaled to `size` pixels.

    crop: where along the longer side a photo's square lies: in the middle, or where the subject seems to be. kind: what
    the photos share, "object", "person" or "style", for captions without a place for the subject's token.
    Raises UserError if the folder cannot be read or holds no usable photo, or more than 500.
    """
    check_path(folder, "photos")
    folder = Path(folder)
    names, sidecars = list_files(folder)
    captions = Captions(sidecars, lambda name: _sidecar_bytes(folder, name), kind)
    crops = OwnCrops(sidecars, lambda name: _sidecar_bytes(folder, name))
    photos, skipped, duplicates = [], [], []
    first_names: dict[str, str] = {}
    for name in names:
        try:
            data = _read_photo(folder, name)
            sha256 = hashlib.sha256(data).hexdigest()
            _check_duplicate(first_names, sha256)
            photo = _make_photo(name, data, sha256, size, crop, captions, crops)
            pixels_sha256 = hash_pixels(photo.pixels)
            _check_duplicate(first_names, pixels_sha256)
            first_names[sha256] = first_names[pixels_sha256] = photo.name
            photos.append(photo)
        except UnusablePhoto as reason:
            skipped.append(SkippedFile(printable(name), str(reason)))
        except _Duplicate as reason:
            duplicates.append(SkippedFile(printable(name), str(reason)))
    if not photos:
        raise _no_photos_error(folder, skipped)
    if problem := captions.table_problem(names):
        skipped.append(SkippedFile(printable(captions.table), problem))
    return PhotoSet(tuple(photos), tuple(skipped), tuple(duplicates), len(set(sidecars) - captions.used - crops.used))


def count_photos(folder: Path) -> int:
    """Count the files of a folder that may be photos; none is opened. Raises UserError as `load_photos` does."""
    return len(list_files(Path(folder))[0])


def check_photos(folder: Path) -> None:
    """Raise UserError as `load_photos` does for a folder without a usable photo; one usable photo is enough."""
    folder = Path(folder)
    for name in list_files(folder)[0]:
        with suppress(UnusablePhoto):
            decode(_read_photo(folder, name), MIN_SIDE)
            return
    load_photos(folder, MIN_SIDE)  # raises, with what the folder contains instead


class _Duplicate(Exception):
    """The same photo was loaded before; holds its earlier name."""


def load_photo(path: Path, size: int, crop: CropMode = "center", kind: str = "object") -> Photo:
    """Load one photo with its sidecars, as `load_photos` does. Raises UnusablePhoto, UserError."""
    folder, sidecars = path.parent, list_files(path.parent)[1]
    captions = Captions(sidecars, lambda name: _sidecar_bytes(folder, name), kind)
    crops = OwnCrops(sidecars, lambda name: _sidecar_bytes(folder, name))
    data = _read_photo(folder, path.name)
    return _make_photo(path.name, data, hashlib.sha256(data).hexdigest(), size, crop, captions, crops)


def _make_photo(
    name: str, data: bytes, sha256: str, size: int, crop: str, captions: Captions, crops: OwnCrops
) -> Photo:
    own_crop, crop_notes = crops.of(name)
    if own_crop:
        try:
            square, notes, side = decode_square(data, own_crop, size)
        except Refused as reason:
            own_crop, crop_notes = None, (f"its crop is not used: it {reason}",)
    if own_crop:
        pixels, left_top, original_size = square, (0, 0), (side, side)
    else:
        pixels, notes = decode(data, size)
        left_top, scale = _CROPS[crop](pixels), shorter_side(data) / size
        original_size = round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)
    caption = captions.of(name)
    notes = (*notes, *crop_notes, *caption.notes)
    return Photo(printable(name), pixels, sha256, left_top, notes, caption.lines, original_size, own_crop)


def hash_pixels(pixels: np.ndarray) -> str:
    """Return the sha256 (hex) of a photo's pixels."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _sidecar_bytes(folder: Path, name: str) -> bytes:
    try:
        return _read_photo(folder, name)
    except UnusablePhoto as reason:
        raise Refused(str(reason)) from None


def _check_duplicate(first_names: dict[str, str], sha256: str) -> None:
    """Raise _Duplicate if a photo of this hash was loaded. first_names: names by the hashes of files and of pixels."""
    if sha256 in first_names:
        raise _Duplicate(f"is the same photo as {first_names[sha256]}; used once")


def list_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of possible photos, in byte order; and those of the other files."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        raise UserError(
            f"There is no folder {printable(str(folder))}.", "Give the folder that holds your photos."
        ) from None
    except NotADirectoryError:
        raise _not_a_folder_error(folder) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"The folder {printable(str(folder))} cannot be read: {reason}.") from None
    photos = sorted((name for name in names if not is_sidecar(name)), key=os.fsencode)
    if len(photos) > MAX_PHOTOS:
        raise UserError(
            f"{printable(str(folder))} contains {len(photos):,} files; up to {MAX_PHOTOS} photos are allowed.",
            "Give a folder with photos of one thing only; 4 to 10 are enough.",
        )
    return photos, [name for name in names if is_sidecar(name)]


def is_sidecar(name: str) -> bool:
    """Return whether a file of that name is a sidecar, not a photo."""
    return name.startswith(".") or os.path.splitext(name)[1].lower() in _SIDECAR_SUFFIXES


def _not_a_folder_error(path: Path) -> UserError:
    name = printable(str(path))
    try:
        detect_format(_read_photo(path.parent, path.name))
    except UnusablePhoto as reason:
        if UNPACK_HINT in str(reason):
            return UserError(f"{name} {reason}.")
    return UserError(f"{name} is a file, not a folder.", "Give the folder that holds your photos.")


def _no_photos_error(folder: Path, skipped: list[SkippedFile]) -> UserError:
    message = f"There are no photos in {printable(str(folder))} (supported: {FORMATS})."
    if not skipped:
        return UserError(message, "Put 4 to 10 photos of one thing there.")
    others = f" And {len(skipped) - 1} more are unusable." if len(skipped) > 1 else ""
    return UserError(message, f"{skipped[0].name} {skipped[0].reason}.{others}")


def _read_photo(folder: Path, name: str) -> bytes:
    """Read a regular file in `folder`; links are followed only inside the folder. Raises UnusablePhoto."""
    path = os.path.join(folder, name)
    try:
        if os.path.islink(path):
            path = _link_target(folder, path)
        _check_file(os.lstat(path))  # before opening: opening a device can already have an effect
        with open(os.open(path, _OPEN_FLAGS), "rb") as file:
            status = os.fstat(file.fileno())
            _check_file(status)
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UnusablePhoto("vanished while it was read") from None
    except OSError as error:
        raise UnusablePhoto(f"cannot be read: {error.strerror}") from None
    if len(data) != status.st_size:
        raise UnusablePhoto("changed while it was read")
    return data


def _link_target(folder: Path, link: str) -> str:
    target = os.path.realpath(link)
    if not Path(target).is_relative_to(os.path.realpath(folder)):
        raise UnusablePhoto("is a link that leads out of the folder")
    if not os.path.lexists(target):
        raise UnusablePhoto("is a link to a file that is not there")
    return target


def _check_file(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UnusablePhoto("is a folder; only photos in the folder itself are used")
    if not stat.S_ISREG(status.st_mode):
        raise UnusablePhoto("is not a regular file")
    if status.st_size == 0:
        raise UnusablePhoto("is empty")
    if status.st_size > MAX_BYTES:
        raise UnusablePhoto(f"has {status.st_size / 1e6:,.0f} MB; up to {MAX_BYTES / 1e6:.0f} are allowed")


def _center_crop(pixels: np.ndarray) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    size = min(height, width)
    return (width - size) // 2, (height - size) // 2


_CROPS = {"center": _center_crop, "subject": find_subject}


def _count_text(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
