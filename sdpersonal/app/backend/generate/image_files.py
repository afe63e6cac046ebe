"""Make the files of images that pages ask for: thumbnails, copies without recipe, overlays, zip archives."""

from __future__ import annotations

import io
import logging
import secrets
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from PIL import Image

from .... import storage
from ....display.image_grid import encode_jpeg, encode_png
from ....errors import UserError
from ....generation.image import draw_concepts
from ....image_metadata import Foreign, png_with_recipe, read_recipe
from ....outputs import SavedImage
from ....outputs.folder import MAX_IMAGE_BYTES
from .gallery import Gallery

THUMB_SIDE = 384  # pixels of a thumbnail's longer side
_THUMB_QUALITY = 85
_MAX_PIXELS = 1 << 27  # more than can be generated
_MAX_DECODERS = 2  # images decoded at a time: one may take 400 MB
_MAX_ZIPS = 200  # archives that were asked for and are remembered, of all users
_PAGE_BYTES = 1 << 28  # of a grid's HTML page
log = logging.getLogger(__name__)


class ImageFiles:
    """The files of all users' images. Methods may be called from any thread, and raise UserError."""

    def __init__(self, gallery: Gallery):
        self._gallery = gallery
        self._decoders = threading.BoundedSemaphore(_MAX_DECODERS)
        self._zips: OrderedDict[tuple[str | None, str], tuple[list[SavedImage], bool]] = OrderedDict()
        self._lock = threading.Lock()

    def png(self, user: str | None, image_id: str, plain: bool = False) -> bytes:
        """Return an image's file; plain: with nothing but its pixels."""
        image = self._gallery.find(user, image_id)
        return self._plain_png(image) if plain else _read(image)

    def thumbnail(self, user: str | None, image_id: str) -> bytes:
        """Return an image's thumbnail as JPEG; a plain grey one for a file that cannot be read, which must not hide
        the others."""
        image = self._gallery.find(user, image_id)
        mark = image.path.stat().st_mtime_ns if image.kind == "grid" else 0
        path = self._gallery.workspace.user_dir(user) / f"small-{image.day}-{image.name[:-4]}-{mark:x}.jpg"
        try:
            return storage.read_bytes(path, 1 << 20)
        except UserError:  # not made yet
            data = self._make_thumbnail(image)
            storage.write_bytes(path, data)
            return data

    def areas(self, user: str | None, image_id: str) -> bytes:
        """Return a PNG of the image and, over it, where its concepts are."""
        image = self._gallery.find(user, image_id)
        data = _read(image)
        recipe = read_recipe(data, "This image")
        if isinstance(recipe, Foreign):
            raise UserError("Another program's image does not tell where its concepts are.")
        with self._decoders:
            return encode_png(draw_concepts(_decode(data), recipe))

    def grid_page(self, user: str | None, image_id: str) -> bytes:
        """Return the HTML page of a grid."""
        image = self._gallery.find(user, image_id)
        return storage.read_bytes(image.path.with_suffix(".html"), _PAGE_BYTES)

    def prepare_zip(self, user: str | None, ids: Sequence[str], recipes: bool) -> str:
        """Remember which images an archive is to have; return its name for `zip`."""
        images = self._gallery.find_all(user, ids)
        if not images:
            raise UserError("These images are gone.")
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._zips[user, name] = images, recipes
            if len(self._zips) > _MAX_ZIPS:
                self._zips.popitem(last=False)
        return name

    def zip(self, user: str | None, name: str) -> Iterator[bytes]:
        """Return an archive in parts; images that were deleted meanwhile are left out."""
        with self._lock:
            images, recipes = self._zips.get((user, name), ([], False))
        if not images:
            raise UserError("This download is over.", "Choose the images again.")
        return self._zip_parts(images, recipes)

    def _zip_parts(self, images: Sequence[SavedImage], recipes: bool) -> Iterator[bytes]:
        stream = _PartStream()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for image in images:
                try:
                    data = _read(image) if recipes else self._plain_png(image)
                except UserError as error:
                    log.info("left out of a download: %s", error)
                    continue
                archive.writestr(f"{image.day}-{image.name}", data)
                yield stream.take()
        yield stream.take()

    def _plain_png(self, image: SavedImage) -> bytes:
        data = _read(image)
        with self._decoders:
            return png_with_recipe(_decode(data), None)

    def _make_thumbnail(self, image: SavedImage) -> bytes:
        with self._decoders:
            try:
                thumbnail = _decode(_read(image))
            except UserError as error:
                log.info("no thumbnail of an image: %s", error)
                thumbnail = Image.new("RGB", (THUMB_SIDE, THUMB_SIDE), (128, 128, 128))
            thumbnail.thumbnail((THUMB_SIDE, THUMB_SIDE))
            return encode_jpeg(thumbnail, _THUMB_QUALITY)


class _PartStream(io.RawIOBase):
    """A stream that an archive is written to and taken from in parts."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]  # any buffer
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def _read(image: SavedImage) -> bytes:
    return storage.read_bytes(image.path, MAX_IMAGE_BYTES)


def _decode(data: bytes) -> Image.Image:
    """Decode a PNG. Raises UserError for a damaged or too large one."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height <= _MAX_PIXELS:
                return image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds for damaged files
        log.info("an image cannot be decoded: %s", error)
    raise UserError("This image is damaged, or too large.")
