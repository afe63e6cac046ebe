"""Keep the photos of a draft on disk, which the user can rotate, crop, caption and leave out.

Each photo is re-encoded from its pixels on arrival, so that neither its file name nor where it was taken is kept, and
is called "photo 01" from then on, by the trainer too. Every file is written all or nothing; `photos.json` lists the
photos, and files that it does not list, which a crash left, are removed when the draft is opened.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from .... import storage
from ....config.text_checks import is_blank
from ....display.image_grid import encode_jpeg
from ....errors import FieldError, UserError, printable
from ....photos import crops
from ....photos.captions import Refused, by_key, caption_file, lines_of, text_of
from ....photos.crops import OwnCrop, crop_json, parse_crop
from ....photos.decode import UnusablePhoto
from ....photos.loading import MAX_BYTES, hash_pixels, is_sidecar
from ....training.run_dir import read_json
from .photo_files import (
    JPEG_QUALITY,
    MAX_CAPTION,
    MAX_UPLOADS,
    check_uploads,
    decode_photo,
    encode_photo,
    parse_captions,
)

LIST_FILE, PHOTOS, THUMBS = "photos.json", "photos", "thumbs"
THUMB_SIDE = 384  # pixels, the longer side
_SIZE_FACTOR = 2  # photos are kept at this multiple of the training resolution, so they can be rotated and rescaled
_MAX_MESSAGES = 5  # lines about files that cannot be used
_NAME = re.compile(r"photo [0-9]{2,3}")
_decoding = threading.Lock()  # one photo at a time, whoever adds it: a large one needs 0.8 GB


@dataclass(frozen=True)
class Upload:
    """One photo. name: on the page and of its file; digest: SHA-256 of its pixels on arrival; used: whether to train
    on it."""

    name: str
    digest: str
    used: bool = True


@dataclass(frozen=True)
class StoredPhoto:
    """A photo as it is stored. version: changes with its pixels; size: (width, height); captions: one a line; crop: by
    hand, None for automatic."""

    name: str
    used: bool
    path: Path
    version: str
    size: tuple[int, int]
    captions: str
    crop: OwnCrop | None


class PhotoUploads:
    """The photos in a draft's folder. side: training resolution in pixels; lock: held by every method."""

    def __init__(self, folder: Path, side: int):
        self.folder, self.side, self.lock = folder, side, threading.RLock()
        self._sizes: dict[str, tuple[str, tuple[int, int]]] = {}  # by name, each with the photo's version
        self.uploads = self._read_list()
        self._sweep()

    def add(self, paths: Sequence[Path]) -> list[str]:
        """Copy the photos; return a line for each that cannot be used. Text files beside photos are their captions,
        and `.crop.json` files their crops.

        Raises UserError if there are too many or they are too large, DiskFull if the disk is nearly full.
        """
        with self.lock:
            photos = sorted(
                (path for path in paths if not is_sidecar(path.name)), key=lambda path: os.fsencode(path.name)
            )
            if not self.folder.is_dir():
                raise UserError("That draft does not exist any more.", "Reload the page.")
            check_uploads(photos, MAX_UPLOADS - len(self.uploads), self.folder)
            sidecars = {path.name: path for path in paths if is_sidecar(path.name)}
            by_name = by_key(list(sidecars))
            problems = []
            for path in photos:
                caption = sidecars.get(caption_file(path.name, by_name) or "")
                crop = sidecars.get(f"{path.name}{crops.SUFFIX}") or sidecars.get(f"{path.stem}{crops.SUFFIX}")
                try:
                    self._add_photo(path, caption, crop)
                except (UnusablePhoto, UserError) as reason:
                    problems.append(f"{printable(path.name, 60)} {reason}.")
            if len(problems) > _MAX_MESSAGES:
                problems[_MAX_MESSAGES:] = [f"And {len(problems) - _MAX_MESSAGES} more that cannot be used."]
            return problems

    def use(self, name: str, used: bool) -> None:
        """Leave a photo out, or put it back."""
        with self.lock:
            changed = self._upload(name)
            if changed.used != used:
                self._save_list([replace(u, used=used) if u is changed else u for u in self.uploads])

    def rotate(self, name: str, quarters: int) -> None:
        """Rotate a photo to the left by quarters. It loses its crop by hand."""
        with self.lock:
            path = self.path(name)
            if quarters % 4:
                pixels = np.rot90(self._pixels(path), quarters)
                self._write_crop(name, None)
                storage.write_bytes(path, encode_photo(pixels))
                self._write_thumb(name, pixels)

    def set_captions(self, name: str, text: object) -> None:
        """Set a photo's captions, one a line, with {} for the subject. Raises UserError."""
        with self.lock:
            path = self._sidecar(name, ".txt")
            lines = parse_captions(text) if isinstance(text, str) and not is_blank(text) else ()
            if lines:
                storage.write_text(path, "\n".join(lines) + "\n")
            elif path.exists():
                storage.remove(path)

    def set_crop(self, name: str, crop: OwnCrop | None) -> None:
        """Set a photo's crop by hand; None: automatic. Raises UserError if it does not fit the photo."""
        with self.lock:
            if crop:
                try:
                    crop.check(*self.photo(name).size)
                except Refused as reason:
                    raise FieldError("crop", f"The crop {reason}.", "Draw a square inside the photo.") from None
            self._write_crop(name, crop)

    def remove(self, name: str) -> None:
        """Remove a photo."""
        with self.lock:
            removed = self._upload(name)
            self._save_list([upload for upload in self.uploads if upload is not removed])
            self._sweep()

    def clear(self) -> None:
        """Remove all photos. The next one is photo 01 again."""
        with self.lock:
            self._save_list([])
            self._sweep()

    def photos(self) -> list[StoredPhoto]:
        """Return all photos."""
        with self.lock:
            return [self.photo(upload.name) for upload in self.uploads]

    def photo(self, name: str) -> StoredPhoto:
        """Return a photo. Raises UserError if there is none of that name."""
        with self.lock:
            upload, path = self._upload(name), self.path(name)
            version = self._version(name)
            known_version, size = self._sizes.get(name, ("", (0, 0)))
            if known_version != version:
                with Image.open(path, formats=["PNG"]) as image:
                    size = image.size
                self._sizes[name] = version, size
            return StoredPhoto(name, upload.used, path, version, size, self._captions(name), self._crop(name))

    def jpeg(self, name: str, thumb: bool) -> bytes:
        """Return a photo, or its thumbnail, as JPEG. Raises UserError if there is none of that name."""
        with self.lock:
            path = self.path(name)
            if not thumb:
                return encode_jpeg(Image.fromarray(self._pixels(path)), JPEG_QUALITY)
            file = self._thumb(name)
            if not file.exists():  # a crash came before it was written
                self._write_thumb(name, self._pixels(path))
            return storage.read_bytes(file, MAX_BYTES)

    def copy_to(self, folder: Path) -> None:
        """Copy the used photos with their captions and crops to a new folder. Raises UserError, DiskFull."""
        with self.lock:
            used = [upload.name for upload in self.uploads if upload.used]
            if not used:
                raise FieldError("photos", "There are no photos yet.", "Drop 4 to 10 of one subject.")
            with storage.new_folder(folder) as staging_folder:
                for name in used:
                    for file in (self.path(name), self._sidecar(name, ".txt"), self._sidecar(name, crops.SUFFIX)):
                        if file.exists():
                            storage.write_bytes(staging_folder / file.name, storage.read_bytes(file, MAX_BYTES))

    def path(self, name: str) -> Path:
        """Return a photo's file. Raises UserError if there is none of that name."""
        return self.folder / PHOTOS / self._upload(name).name

    # --- inside -------------------------------------------------------------------------------------------------------

    def _upload(self, name: object) -> Upload:
        upload = next((upload for upload in self.uploads if upload.name == name), None)
        if upload is None:
            raise UserError("That photo does not exist any more.", "Choose another.")
        return upload

    def _sidecar(self, name: str, suffix: str) -> Path:
        path = self.path(name)
        return path.with_name(path.name + suffix)

    def _version(self, name: str) -> str:
        return f"{self.path(name).stat().st_mtime_ns:x}"

    def _thumb(self, name: str) -> Path:
        return self.folder / THUMBS / f"{name} {self._version(name)}.jpg"

    def _pixels(self, path: Path) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(storage.read_bytes(path, MAX_BYTES)), formats=["PNG"]))

    def _captions(self, name: str) -> str:
        file = self._sidecar(name, ".txt")
        return storage.read_bytes(file, MAX_CAPTION).decode(errors="replace").strip() if file.exists() else ""

    def _crop(self, name: str) -> OwnCrop | None:
        with suppress(Refused, UserError):
            return parse_crop(storage.read_bytes(self._sidecar(name, crops.SUFFIX), MAX_CAPTION))
        return None

    def _write_crop(self, name: str, crop: OwnCrop | None) -> None:
        file = self._sidecar(name, crops.SUFFIX)
        if crop:
            storage.write_text(file, crop_json(crop))
        elif file.exists():
            storage.remove(file)

    def _write_thumb(self, name: str, pixels: np.ndarray) -> None:
        folder = storage.make_folder(self.folder / THUMBS)
        for old in folder.glob(f"{name} *.jpg"):
            storage.remove(old)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.thumbnail((THUMB_SIDE, THUMB_SIDE), reducing_gap=2.0)
        storage.write_bytes(self._thumb(name), encode_jpeg(image, JPEG_QUALITY))

    def _add_photo(self, path: Path, caption: Path | None, crop: Path | None) -> None:
        with _decoding:
            pixels = decode_photo(storage.read_bytes(path, MAX_BYTES), max(512, _SIZE_FACTOR * self.side))
        digest = hash_pixels(pixels)
        for upload in self.uploads:
            if upload.digest == digest:
                raise UnusablePhoto(f"is the same photo as {upload.name}")
        name = self._next_name()
        storage.make_folder(self.folder / PHOTOS)
        storage.write_bytes(self.folder / PHOTOS / name, encode_photo(pixels))
        self._save_list([*self.uploads, Upload(name, digest)])
        self._write_thumb(name, pixels)
        if caption is not None:
            self._copy_caption(name, caption)
        if crop is not None:
            self._copy_crop(name, crop)

    def _next_name(self) -> str:
        numbers = [int(upload.name.removeprefix("photo ")) for upload in self.uploads]
        return f"photo {max(numbers, default=0) + 1:02d}"

    def _copy_caption(self, name: str, source: Path) -> None:
        """Save a caption as UTF-8 with plain spaces. Raises UserError if it cannot be used; the photo stays."""
        try:
            lines = lines_of(text_of(storage.read_bytes(source, MAX_CAPTION)))
        except Refused as reason:
            raise UserError(f"is used without its caption: {printable(source.name, 60)} {reason}") from None
        storage.write_text(self._sidecar(name, ".txt"), "\n".join(lines) + "\n")

    def _copy_crop(self, name: str, source: Path) -> None:
        """Save a crop by hand. Raises UserError if it cannot be used; the photo stays."""
        try:
            crop = parse_crop(storage.read_bytes(source, MAX_CAPTION))
            crop.check(*self.photo(name).size)
        except Refused as reason:
            raise UserError(f"is used without its crop: {printable(source.name, 60)} {reason}") from None
        self._write_crop(name, crop)

    # --- the list of photos -------------------------------------------------------------------------------------------

    def _save_list(self, uploads: list[Upload]) -> None:
        storage.write_json(self.folder / LIST_FILE, {"photos": [asdict(upload) for upload in uploads]})
        self.uploads = uploads

    def _read_list(self) -> list[Upload]:
        """Return the listed photos whose files are there; if the list cannot be read, all photos."""
        folder = self.folder / PHOTOS
        names = sorted(name for name in (os.listdir(folder) if folder.is_dir() else []) if _NAME.fullmatch(name))
        listed = read_json(self.folder / LIST_FILE).get("photos")
        if not isinstance(listed, list):
            if (self.folder / LIST_FILE).exists():
                return [Upload(name, hash_pixels(self._pixels(folder / name))) for name in names]
            return []
        uploads = [_parse_upload(entry) for entry in listed[:MAX_UPLOADS]]
        return [upload for upload in uploads if upload and upload.name in names]

    def _sweep(self) -> None:
        """Remove the files of photos that are not listed, and those that a crash left half written."""
        names = {upload.name for upload in self.uploads}
        for folder in (self.folder, self.folder / PHOTOS, self.folder / THUMBS):
            storage.remove_leftovers(folder)
        for folder in (self.folder / PHOTOS, self.folder / THUMBS):
            for file in folder.iterdir() if folder.is_dir() else ():
                match = _NAME.match(file.name)
                if (match is None or match[0] not in names) and not file.name.startswith("."):
                    storage.remove(file)


def _parse_upload(entry: object) -> Upload | None:
    """Read an entry of the list; None if it is none."""
    if not isinstance(entry, dict):
        return None
    name, digest = entry.get("name"), entry.get("digest")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(digest, str):
        return None
    return Upload(name, digest[:64], entry.get("used") is not False)
