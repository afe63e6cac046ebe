"""Find the images of a training that the page shows: single images of each validation, the photos as thumbnails.

A run of a former version has one sheet for each validation, which is shown as one image.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from .... import storage
from ....display.image_grid import encode_jpeg
from ....errors import UserError
from ....photos.loading import is_sidecar
from ....training.run_dir import (
    CLASS_NOUN_FOLDER,
    CLASS_NOUN_IMAGE,
    MAX_STEP,
    SAMPLES_FILE,
    VALIDATIONS_FOLDER,
    read_sample_images,
    validation_folder,
    validation_image,
)
from .photo_files import JPEG_QUALITY, decode_photo
from .run_folders import PHOTOS_FOLDER
from .run_status import RunStatus

_MAX_BYTES = 64 << 20  # of an image
_MAX_PHOTOS = 40
_THUMB_SIDE = 256
_PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of a PNG
_decoding = threading.Lock()  # one photo at a time
_GONE = "That image does not exist any more."


@dataclass(frozen=True)
class ShownImage:
    """An image on the page. prompt: with the token's place filled in; "" for a sheet."""

    url: str
    prompt: str = ""
    seed: int = 0
    is_own: bool = False


def timeline_images(status: RunStatus, step: int) -> list[ShownImage]:
    """Return the images of a validation."""
    return _images(status, validation_folder(status.folder, step), validation_image(status.folder, step), str(step))


def class_images(status: RunStatus) -> list[ShownImage]:
    """Return the images of the class noun by the model without the concept."""
    folder = status.folder / VALIDATIONS_FOLDER
    return _images(status, folder / CLASS_NOUN_FOLDER, folder / CLASS_NOUN_IMAGE, "class")


def _images(status: RunStatus, folder: Path, sheet: Path, place: str) -> list[ShownImage]:
    token = str(status.settings.get("token", ""))
    images = [
        ShownImage(
            f"{_run_url(status)}/images/{place}/{image.path.stem}.png?v={_version(image.path)}",
            image.prompt.replace("{}", token) if place != "class" else image.prompt,
            image.seed,
            image.is_own,
        )
        for image in read_sample_images(folder)
        if image.path.is_file()
    ]
    if not images and sheet.is_file():
        return [ShownImage(f"{_run_url(status)}/images/{place}/0.png?v={_version(sheet)}")]
    return images


def samples_url(status: RunStatus) -> str | None:
    """Return the address of the finished concept's sample sheet, if there is one."""
    path = status.folder / SAMPLES_FILE
    return f"{_run_url(status)}/images/samples/0.png?v={_version(path)}" if path.is_file() else None


def read_image(status: RunStatus, place: str, number: int) -> bytes:
    """Return the PNG of an image. place: a step, "class" or "samples"; number: from 1, 0 for the sheet. Raises
    UserError if there is none."""
    path = _image_path(status.folder, place, number)
    if storage.read_head(path, len(_PNG))[0] != _PNG:
        raise UserError(_GONE)
    return storage.read_bytes(path, _MAX_BYTES)


def _image_path(run: Path, place: str, number: int) -> Path:
    folder = run / VALIDATIONS_FOLDER
    if place == "samples":
        return run / SAMPLES_FILE
    if place == "class":
        return folder / CLASS_NOUN_FOLDER / f"{number}.png" if number else folder / CLASS_NOUN_IMAGE
    if not (place.isascii() and place.isdigit() and int(place) <= MAX_STEP):
        raise UserError(_GONE)
    step = int(place)
    return validation_folder(run, step) / f"{number}.png" if number else validation_image(run, step)


# --- photos -----------------------------------------------------------------------------------------------------------


def photo_names(status: RunStatus) -> list[str]:
    """Return the names of the run's photos; a finished run has none any more."""
    folder = status.folder / PHOTOS_FOLDER
    try:
        names = sorted(os.listdir(folder)) if not os.path.islink(folder) else []
    except OSError:
        return []
    return [name for name in names if not is_sidecar(name)][:_MAX_PHOTOS]


def photo_urls(status: RunStatus) -> list[str]:
    folder = status.folder / PHOTOS_FOLDER
    names = enumerate(photo_names(status), 1)
    return [f"{_run_url(status)}/photos/{number}.jpg?v={_version(folder / name)}" for number, name in names]


def photo_thumbnail(status: RunStatus, number: int) -> bytes:
    """Return a photo as a small JPEG. number: from 1. Raises UserError if there is none, or it cannot be decoded."""
    names = photo_names(status)
    if not 1 <= number <= len(names):
        raise UserError(_GONE)
    path = status.folder / PHOTOS_FOLDER / names[number - 1]
    return _thumbnail(path, _version(path))


@lru_cache(maxsize=400)
def _thumbnail(path: Path, version: str) -> bytes:
    data = storage.read_bytes(path, _MAX_BYTES)
    try:
        with _decoding:
            pixels = decode_photo(data, _THUMB_SIDE)
    except Exception:
        raise UserError("That photo cannot be shown.") from None
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMB_SIDE * 2, _THUMB_SIDE))
    return encode_jpeg(image, JPEG_QUALITY)


def _run_url(status: RunStatus) -> str:
    return f"/app/trainings/{quote(status.id, safe='')}"


def _version(path: Path) -> str:
    """Return text that changes with the file."""
    try:
        return f"{path.stat().st_mtime_ns:x}"
    except OSError:
        return "0"
