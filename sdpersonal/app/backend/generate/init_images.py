"""Hold the images and masks that generation begins from, per user:

    outputs/[USER/].init/abcdef0123456789.png    named by the first digits of its sha256; the newest stay

They outlive the upload, the page and the app, so that a job can wait and a form can be used again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .... import storage
from ....display.image_grid import encode_png
from ....errors import UserError
from ....photos.decode import UnusablePhoto, open_unread
from ..workspace import Workspace

FOLDER = ".init"
MAX_SIDE = 4096  # pixels of a side
FORMATS = ("PNG", "JPEG", "WebP")
MAX_SAVED = 120  # files of a user: more than the jobs that can wait need
_MAX_BYTES = 100_000_000  # of an uploaded file
_STRIP = 256  # rows
_MIN_PAINT = 16  # of 255: fainter paint is only the brush's soft edge
_WHITE = 128  # of 255
_SAME_SHAPE = 0.02  # relative difference of width / height: less is rounding
_NAME = re.compile(r"[0-9a-f]{16}")
_decoding = threading.Lock()  # one image at a time: any number of pages may ask at once


@dataclass(frozen=True)
class InitImages:
    """The init images and masks of one user. Every method raises UserError."""

    workspace: Workspace
    user: str | None

    @property
    def folder(self) -> Path:
        return self.workspace.user_outputs(self.user).folder / FOLDER

    def save_image(self, upload: str) -> str:
        """Save an uploaded image as an init image, transparent parts white; return its name. Deletes the upload."""
        with _decoding:
            return self._save(_flatten(self._open(upload, "init image")), upload)

    def save_mask(self, upload: str, size: tuple[int, int]) -> str | None:
        """Save an uploaded mask for an init image of this size; return its name, None if nothing is painted. Deletes
        the upload.

        If any pixel of it is transparent, all paint that is not is repainted; else what is lighter than middle grey.
        """
        with _decoding:
            mask = self._open(upload, "mask")
            if abs(mask.width / mask.height / (size[0] / size[1]) - 1) > _SAME_SHAPE:
                sizes = f"{mask.width}x{mask.height}", f"{size[0]}x{size[1]}"
                raise UserError(f"The mask is {sizes[0]} and the init image {sizes[1]}.", "Paint it on that image.")
            painted = _painted(mask)
            if not painted.any():
                self.workspace.discard_upload(upload)
                return None
            white = Image.fromarray(painted).convert("RGB")
            return self._save(white.resize(size, Image.Resampling.NEAREST), upload)

    def path(self, name: object) -> Path:
        """Return the file of a saved image or mask. Raises UserError if there is none of this name."""
        path = self.folder / f"{name}.png"
        if not (isinstance(name, str) and _NAME.fullmatch(name) and path.is_file()):
            raise UserError("The init image is gone.", "Choose it again.")
        return storage.resolve_inside(self.folder, path.name)

    def size(self, path: Path) -> tuple[int, int]:
        """Return an image's size in pixels, from its first bytes."""
        try:
            return open_unread(storage.read_bytes(path, _MAX_BYTES), FORMATS).size
        except UnusablePhoto as reason:
            raise UserError(f"The init image {reason}.") from None

    def _open(self, upload: str, label: str) -> Image.Image:
        """Open an uploaded image without decoding its pixels. Raises UserError; an unusable upload is deleted."""
        path = self.workspace.uploaded_file(upload)
        try:
            image = open_unread(storage.read_bytes(path, _MAX_BYTES), FORMATS)
            if max(image.size) > MAX_SIDE:
                size = f"{image.width}x{image.height}"
                raise UserError(f"The {label} is {size}.", f"Use one of at most {MAX_SIDE} pixels a side.")
            image.load()
        except UnusablePhoto as reason:
            self.workspace.discard_upload(path)
            raise UserError(f"The {label} {reason}.", f"Use one of {', '.join(FORMATS)}.") from None
        except UserError:
            self.workspace.discard_upload(path)
            raise
        except Exception:  # decoders of untrusted bytes raise anything
            self.workspace.discard_upload(path)
            raise UserError(f"The {label} is damaged and cannot be decoded.", "Use another.") from None
        return image

    def _save(self, image: Image.Image, upload: str) -> str:
        data = encode_png(image)
        name = storage.sha256(data)[:16]
        storage.make_folder(self.folder)
        storage.write_bytes(self.folder / f"{name}.png", data)
        files = [path for path in self.folder.glob("*.png") if _NAME.fullmatch(path.stem)]
        for path in sorted(files, key=_modified, reverse=True)[MAX_SAVED:]:
            with suppress(UserError):  # removed just now by another request
                storage.remove(path)
        self.workspace.discard_upload(upload)
        return name


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield (top, strip of the image as RGBA), so that a large image is never in memory twice."""
    for top in range(0, image.height, _STRIP):
        yield top, image.crop((0, top, image.width, min(top + _STRIP, image.height))).convert("RGBA")


def _flatten(image: Image.Image) -> Image.Image:
    """Convert to RGB with transparent parts white."""
    flat = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        white = Image.new("RGBA", strip.size, "white")
        flat.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return flat


def _painted(mask: Image.Image) -> np.ndarray:
    """Return where a mask is painted, bool (H, W): see `InitImages.save_mask`."""
    alpha = np.concatenate([np.asarray(strip)[..., 3] for _, strip in _strips(mask)])
    if (alpha < 255).any():
        return alpha > _MIN_PAINT
    return np.concatenate([np.asarray(strip.convert("L")) >= _WHITE for _, strip in _strips(mask)])


def _modified(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
