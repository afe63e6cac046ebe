"""The photos of a page, before anything is learned from them: private copies, of which a person leaves out and turns.

A photo is rebuilt from its pixels as it comes in, so that neither its name nor where it was taken stays with it, and
is called "photo 01" from then on, in the trainer's words too.
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
from ....config.text_checks import encoding_problem, is_blank
from ....errors import DiskFull, UserError
from ....photos.captions import Refused, by_key, caption_file, lines_of, text_of
from ....photos.decode import FORMATS, UnusablePhoto, decode, shorter_side
from ....photos.loading import MAX_BYTES, PhotoSet, is_sidecar, load_photos
from ....prompts import printable

MAX_UPLOADS = 40  # photos
MAX_TOTAL = 1 << 30  # bytes of one drop
MAX_PAGES = 50  # with photos; the oldest one's go when there are more
MIN_FREE_BYTES = 1 << 30  # bytes on the disk, below which nothing more is taken
SAMPLE_SETS = {
    "teddy-bear": "A teddy bear",
    "cyanotype": "A style: cyanotypes",
}  # folders of examples/photos
_SIZE_FACTOR = 2  # times the side that is trained on: what is kept, so that a photo may be turned and scaled again
_MAX_CAPTION = 200_000  # bytes
_MAX_MESSAGES = 5  # lines about files that cannot be used


@dataclass
class Upload:
    """One photo. name: as it is called here, and its file's; used: whether it will be learned from."""

    name: str
    digest: str  # of its pixels as they came
    used: bool = True


@dataclass
class PhotoUploads:
    """folder: of this page alone, gone with it; side: in pixels, that will be trained on."""

    folder: Path
    side: int
    uploads: list[Upload] = field(default_factory=list)
    held: threading.RLock = field(default_factory=threading.RLock)
    _count: int = 0

    def add(self, paths: Sequence[Path]) -> list[str]:
        """Take copies; what cannot be used, a line each. Text files beside photos are their captions.

        Raises UserError where it is too much at once, DiskFull where the disk is nearly full.
        """
        with self.held:
            photos = sorted(
                (path for path in paths if not is_sidecar(path.name)), key=lambda path: os.fsencode(path.name)
            )
            check_uploads(photos, MAX_UPLOADS - len(self.uploads), self.folder)
            texts = {path.name: path for path in paths if is_sidecar(path.name)}
            by_name = by_key(list(texts))
            said = []
            for path in photos:
                try:
                    self._take(path, texts.get(caption_file(path.name, by_name) or ""))
                except (UnusablePhoto, UserError) as reason:
                    said.append(f"{printable(path.name, 60)} {reason}.")
            if len(said) > _MAX_MESSAGES:
                said[_MAX_MESSAGES:] = [f"And {len(said) - _MAX_MESSAGES} more that I cannot use."]
            return said

    def use(self, number: int, used: bool) -> None:
        """Leave a photo out, or put it back."""
        with self.held:
            snap = self._upload(number)
            if snap.used != used:
                for name in (snap.name, f"{snap.name}.txt"):
                    if (self._place(snap) / name).exists():
                        storage.rename(self._place(snap) / name, self._place(Upload("", "", used)) / name)
                snap.used = used

    def turn(self, number: int, quarters: int) -> None:
        """Turn a photo by quarters, to the left."""
        with self.held:
            place = self.path(number)
            pixels = np.asarray(Image.open(io.BytesIO(storage.read_bytes(place, MAX_BYTES))))
            storage.write_bytes(place, _encode_png(np.rot90(pixels, quarters)))

    def caption(self, number: int, text: object) -> None:
        """Say what else is in a photo, a sentence a line, {} for the subject. Raises UserError."""
        with self.held:
            place = self.path(number).with_name(f"{self._upload(number).name}.txt")
            lines = _lines(text) if isinstance(text, str) and not is_blank(text) else ()
            if lines:
                storage.write_text(place, "\n".join(lines) + "\n")
            elif place.exists():
                storage.remove(place)

    def captions(self, number: int) -> str:
        """The caption as it is."""
        with self.held:
            place = self.path(number).with_name(f"{self._upload(number).name}.txt")
            return storage.read_bytes(place, _MAX_CAPTION).decode(errors="replace").strip() if place.exists() else ""

    def clear(self) -> None:
        """Forget all photos."""
        with self.held:
            self.uploads.clear()
            for used in (True, False):
                place = self._place(Upload("", "", used))
                if place.exists():
                    storage.remove(place)

    def used(self, crop: str = "center") -> PhotoSet | None:
        """The photos as the trainer will see them; None without any."""
        with self.held:
            if not any(snap.used for snap in self.uploads):
                return None
            return load_photos(self._place(Upload("", "", True)), self.side, crop)

    def left_out(self, crop: str = "center") -> PhotoSet | None:
        with self.held:
            if all(snap.used for snap in self.uploads):
                return None
            return load_photos(self._place(Upload("", "", False)), self.side, crop)

    def copy_to(self, folder: Path) -> None:
        """Put copies of the used ones, with their captions, into a new folder. Raises UserError, DiskFull."""
        if not any(snap.used for snap in self.uploads):
            raise UserError("There are no photos yet.", "Drop 4 to 10 of one thing.")
        with self.held, storage.new_folder(folder) as staged:
            place = self._place(Upload("", "", True))
            for name in sorted(os.listdir(place)):
                storage.write_bytes(staged / name, storage.read_bytes(place / name, MAX_BYTES))

    def is_used(self, number: int) -> bool:
        """Raises UserError for a photo that is not there."""
        return self._upload(number).used

    def path(self, number: int) -> Path:
        snap = self._upload(number)
        return self._place(snap) / snap.name

    def _upload(self, number: int) -> Upload:
        if type(number) is not int or not 0 <= number < len(self.uploads):
            raise UserError("That photo is not here any more.", "Choose another.")
        return self.uploads[number]

    def _place(self, snap: Upload) -> Path:
        return self.folder / ("used" if snap.used else "out")

    def _take(self, path: Path, text: Path | None) -> None:
        pixels = _decode(storage.read_bytes(path, MAX_BYTES), max(512, _SIZE_FACTOR * self.side))
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        for snap in self.uploads:
            if snap.digest == digest:
                raise UnusablePhoto(f"is the same photo as {snap.name}")
        self._count += 1
        snap = Upload(f"photo {self._count:02d}", digest)
        storage.make_folder(self._place(snap))
        storage.make_folder(self._place(Upload("", "", False)))
        storage.write_bytes(self._place(snap) / snap.name, _encode_png(pixels))
        self.uploads.append(snap)
        if text is not None:
            self._take_caption(snap, text)

    def _take_caption(self, snap: Upload, text: Path) -> None:
        """Keep a caption as UTF-8 with plain spaces. Raises UserError where it cannot be used; the photo stays."""
        try:
            lines = lines_of(text_of(storage.read_bytes(text, _MAX_CAPTION)))
        except Refused as reason:
            raise UserError(f"is used without its caption: {printable(text.name, 60)} {reason}") from None
        storage.write_text(self._place(snap) / f"{snap.name}.txt", "\n".join(lines) + "\n")


class UploadsByPage:
    """A tray for each page."""

    def __init__(self):
        self._uploads_by_page: dict[str, PhotoUploads] = {}
        self._mutex = threading.Lock()

    def of(self, page: str, side: int) -> PhotoUploads:
        """The page's tray; side: in pixels, that will be trained on."""
        if len(self._uploads_by_page) >= MAX_PAGES and page not in self._uploads_by_page:
            self.leave(next(iter(self._uploads_by_page)))
        with self._mutex:
            if page not in self._uploads_by_page:
                self._uploads_by_page[page] = PhotoUploads(Path(tempfile.mkdtemp(prefix="sdpersonal-photos-")), side)
            tray = self._uploads_by_page[page]
        tray.side = side
        return tray

    def leave(self, page: str) -> None:
        """The page is closed: its photos go."""
        with self._mutex:
            tray = self._uploads_by_page.pop(page, None)
        if tray:
            storage.remove(tray.folder)

    def close(self) -> None:
        """The app ends."""
        for page in list(self._uploads_by_page):
            self.leave(page)


def sample_sets() -> dict[str, Path]:
    """Sets of photos to try with, title to folder; {} where this project's examples are not here."""
    root = Path(__file__).parents[4] / "examples" / "photos"
    return {title: root / name for name, title in SAMPLE_SETS.items() if (root / name).is_dir()}


def check_uploads(photos: Sequence[Path], room: int, folder: Path) -> None:
    """Raises UserError where more is dropped than is taken, DiskFull where the disk is nearly full."""
    if len(photos) > room:
        problem = f"These are {len(photos):,} files; I take up to {MAX_UPLOADS} photos in all."
        raise UserError(problem, "Choose 4 to 10 good ones of one thing.")
    if not photos:
        raise UserError("There are no photos in what you gave me.", f"I read {FORMATS}.")
    size = sum(path.stat().st_size for path in photos)
    if size > MAX_TOTAL:
        raise UserError(f"These are {size / 1e9:.1f} GB; I take up to {MAX_TOTAL / 1e9:.0f} at once.", "Give fewer.")
    if storage.free_bytes(folder) < MIN_FREE_BYTES + size:
        raise DiskFull("The disk is nearly full, so I take no photos.", "Make room there first.")


def _lines(text: str) -> tuple[str, ...]:
    """The captions that somebody typed. Raises UserError."""
    example = "Like: {} in the snow"
    if problem := encoding_problem(text):
        raise UserError(f"The caption {problem.text}", problem.hint)
    try:
        lines = lines_of(text)
    except Refused as reason:
        raise UserError(f"The caption {reason}.", example) from None
    if not all("{}" in line for line in lines):
        raise UserError("A caption needs {} once, where the subject's word goes.", example)
    return lines


def _decode(data: bytes, most: int) -> np.ndarray:
    """uint8 (H, W, 3), upright, sRGB, its shorter side at most `most`. Raises Unusable."""
    try:
        side = min(most, shorter_side(data))
    except Exception:  # damaged: `decode` says how
        side = most
    return decode(data, side)[0]


def _encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
