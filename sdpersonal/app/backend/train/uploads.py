"""Keep private copies of a page's photos before training, which the user can rotate, caption and leave out.

Each photo is re-encoded from its pixels on arrival, so that neither its file name nor where it was taken is kept, and
is called "photo 01" from then on, by the trainer too.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from .... import storage
from ....config import CropMode
from ....config.text_checks import is_blank
from ....errors import UserError, printable
from ....photos.captions import Refused, by_key, caption_file, lines_of, text_of
from ....photos.decode import UnusablePhoto
from ....photos.loading import MAX_BYTES, PhotoSet, is_sidecar, load_photos
from .photo_files import MAX_CAPTION, MAX_UPLOADS, check_uploads, decode_photo, encode_photo, parse_captions

MAX_PAGES = 1000  # pages; when there are more, the oldest one is forgotten, if possible one without photos
_SIZE_FACTOR = 2  # photos are kept at this multiple of the training resolution, so they can be rotated and rescaled
_MAX_MESSAGES = 5  # lines about files that cannot be used
_decoding = threading.Lock()  # one photo at a time, whoever adds it: a large one needs 0.8 GB


@dataclass
class Upload:
    """One photo. name: its name on the page and of its file; used: whether to train on it."""

    name: str
    digest: str  # SHA-256 of its pixels on arrival
    used: bool = True


@dataclass
class PhotoUploads:
    """The photos of one page. folder: private to the page, deleted with it; side: training resolution in pixels;
    lock: held by every method."""

    folder: Path
    side: int
    uploads: list[Upload] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _count: int = 0

    def add(self, paths: Sequence[Path]) -> list[str]:
        """Copy the photos; return a line for each that cannot be used. Text files beside photos are their captions.

        Raises UserError if there are too many or they are too large, DiskFull if the disk is nearly full.
        """
        with self.lock:
            photos = sorted(
                (path for path in paths if not is_sidecar(path.name)), key=lambda path: os.fsencode(path.name)
            )
            check_uploads(photos, MAX_UPLOADS - len(self.uploads), self.folder)
            texts = {path.name: path for path in paths if is_sidecar(path.name)}
            by_name = by_key(list(texts))
            problems = []
            for path in photos:
                try:
                    self._add_photo(path, texts.get(caption_file(path.name, by_name) or ""))
                except (UnusablePhoto, UserError) as reason:
                    problems.append(f"{printable(path.name, 60)} {reason}.")
            if len(problems) > _MAX_MESSAGES:
                problems[_MAX_MESSAGES:] = [f"And {len(problems) - _MAX_MESSAGES} more that cannot be used."]
            return problems

    def use(self, number: int, used: bool) -> None:
        """Leave a photo out, or put it back."""
        with self.lock:
            upload = self._upload(number)
            if upload.used != used:
                for name in (upload.name, f"{upload.name}.txt"):
                    if (self._folder_of(upload) / name).exists():
                        storage.rename(self._folder_of(upload) / name, self._folder_of(Upload("", "", used)) / name)
                upload.used = used

    def rotate(self, number: int, quarters: int) -> None:
        """Rotate a photo to the left by quarters."""
        with self.lock:
            path = self.path(number)
            pixels = np.asarray(Image.open(io.BytesIO(storage.read_bytes(path, MAX_BYTES))))
            storage.write_bytes(path, encode_photo(np.rot90(pixels, quarters)))

    def set_caption(self, number: int, text: object) -> None:
        """Set a photo's captions, one a line, with {} for the subject. Raises UserError."""
        with self.lock:
            caption_path = self.path(number).with_name(f"{self._upload(number).name}.txt")
            lines = parse_captions(text) if isinstance(text, str) and not is_blank(text) else ()
            if lines:
                storage.write_text(caption_path, "\n".join(lines) + "\n")
            elif caption_path.exists():
                storage.remove(caption_path)

    def captions(self, number: int) -> str:
        """Return a photo's captions, one a line."""
        with self.lock:
            file = self.path(number).with_name(f"{self._upload(number).name}.txt")
            return storage.read_bytes(file, MAX_CAPTION).decode(errors="replace").strip() if file.exists() else ""

    def clear(self) -> None:
        """Remove all photos."""
        with self.lock:
            self.uploads.clear()
            for used in (True, False):
                folder = self._folder_of(Upload("", "", used))
                if folder.exists():
                    storage.remove(folder)

    def used_photos(self, crop: CropMode = "center") -> PhotoSet | None:
        """Load the used photos as the trainer will see them; None without any."""
        with self.lock:
            if not any(upload.used for upload in self.uploads):
                return None
            return load_photos(self._folder_of(Upload("", "", True)), self.side, crop)

    def left_out(self, crop: CropMode = "center") -> PhotoSet | None:
        with self.lock:
            if all(upload.used for upload in self.uploads):
                return None
            return load_photos(self._folder_of(Upload("", "", False)), self.side, crop)

    def copy_to(self, folder: Path) -> None:
        """Copy the used photos with their captions to a new folder. Raises UserError, DiskFull."""
        if not any(upload.used for upload in self.uploads):
            raise UserError("There are no photos yet.", "Drop 4 to 10 of one subject.")
        with self.lock, storage.new_folder(folder) as staging_folder:
            used_folder = self._folder_of(Upload("", "", True))
            for name in sorted(os.listdir(used_folder)):
                storage.write_bytes(staging_folder / name, storage.read_bytes(used_folder / name, MAX_BYTES))

    def is_used(self, number: int) -> bool:
        """Return whether a photo is used. Raises UserError if there is no such photo."""
        return self._upload(number).used

    def path(self, number: int) -> Path:
        upload = self._upload(number)
        return self._folder_of(upload) / upload.name

    def _upload(self, number: int) -> Upload:
        if type(number) is not int or not 0 <= number < len(self.uploads):
            raise UserError("That photo does not exist any more.", "Choose another.")
        return self.uploads[number]

    def _folder_of(self, upload: Upload) -> Path:
        return self.folder / ("used" if upload.used else "out")

    def _add_photo(self, path: Path, text: Path | None) -> None:
        with _decoding:
            pixels = decode_photo(storage.read_bytes(path, MAX_BYTES), max(512, _SIZE_FACTOR * self.side))
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        for upload in self.uploads:
            if upload.digest == digest:
                raise UnusablePhoto(f"is the same photo as {upload.name}")
        self._count += 1
        upload = Upload(f"photo {self._count:02d}", digest)
        storage.make_folder(self._folder_of(upload))
        storage.make_folder(self._folder_of(Upload("", "", False)))
        storage.write_bytes(self._folder_of(upload) / upload.name, encode_photo(pixels))
        self.uploads.append(upload)
        if text is not None:
            self._save_caption(upload, text)

    def _save_caption(self, upload: Upload, text: Path) -> None:
        """Save a caption as UTF-8 with plain spaces. Raises UserError if it cannot be used; the photo stays."""
        try:
            lines = lines_of(text_of(storage.read_bytes(text, MAX_CAPTION)))
        except Refused as reason:
            raise UserError(f"is used without its caption: {printable(text.name, 60)} {reason}") from None
        storage.write_text(self._folder_of(upload) / f"{upload.name}.txt", "\n".join(lines) + "\n")


class UploadsByPage:
    """The uploads of every page."""

    def __init__(self) -> None:
        self._uploads_by_page: dict[str, PhotoUploads] = {}
        self._mutex = threading.Lock()

    def get(self, page: str, side: int) -> PhotoUploads:
        """Return the page's uploads; side: training resolution in pixels."""
        if len(self._uploads_by_page) >= MAX_PAGES and page not in self._uploads_by_page:
            pages = list(self._uploads_by_page.items())
            self.close_session(next((name for name, uploads in pages if not uploads.uploads), pages[0][0]))
        with self._mutex:
            if page not in self._uploads_by_page:
                self._uploads_by_page[page] = PhotoUploads(Path(tempfile.mkdtemp(prefix="sdpersonal-photos-")), side)
            uploads = self._uploads_by_page[page]
        uploads.side = side
        return uploads

    def close_session(self, page: str) -> None:
        """Delete the photos of a closed page."""
        with self._mutex:
            uploads = self._uploads_by_page.pop(page, None)
        if uploads:
            storage.remove(uploads.folder)

    def close(self) -> None:
        """Delete all photos when the app ends."""
        for page in list(self._uploads_by_page):
            self.close_session(page)
