"""List and search generated images, as pages of thumbnails."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .... import storage
from ....outputs import Outputs
from ....outputs.facts import load_facts
from ....outputs.folder import FAVOURITE_NAME, FAVOURITES_FOLDER
from ..render_job import SessionImage
from ..workspace import Workspace

PAGE_SIZE = 48  # images at once
_SIDE = 192  # pixels of a thumbnail's longer side
_LIMIT = 1 << 28  # bytes of an image
_MAX_PIXELS = 1 << 27  # more than can be generated
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HistoryPage:
    """One page of the history. results: images, of which `served` is the thumbnail; number: of the page, from 0;
    total: images on all pages."""

    results: tuple[SessionImage, ...]
    number: int
    total: int

    @property
    def note(self) -> str:
        if not self.total:
            return "No images found."
        return f"{self.number * PAGE_SIZE + 1} to {min(self.total, (self.number + 1) * PAGE_SIZE)} of {self.total:,}"


def find_images(
    workspace: Workspace, page: str, user: str | None, search: str = "", starred: bool = False, number: int = 0
) -> HistoryPage:
    """Find the images whose prompt has all the words of `search`, newest first. number: of the page, from 0."""
    outputs = workspace.user_outputs(user)
    words = str(search or "").lower().split()
    matching = [path for path, prompt in _all_images(outputs, starred) if all(word in prompt.lower() for word in words)]
    number = max(0, min(number, (len(matching) - 1) // PAGE_SIZE))
    paths = matching[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
    thumbnails = [_make_thumbnail(workspace, page, path) for path in paths]
    results = tuple(
        SessionImage(path, thumbnail, _day(path.parent, path.name))
        for path, thumbnail in zip(paths, thumbnails, strict=True)
    )
    return HistoryPage(results, number, len(matching))


def publish_image(workspace: Workspace, page: str, result: SessionImage) -> SessionImage:
    """Return the result with its full-size image in the session folder as the file to serve."""
    return SessionImage(result.saved, workspace.publish(result.saved, page), result.caption)


def _all_images(outputs: Outputs, starred: bool) -> list[tuple[Path, str]]:
    if starred:
        return _with_prompts(outputs.folder / FAVOURITES_FOLDER, outputs.favourites())
    return [image for day in outputs.days() for image in _with_prompts(outputs.folder / day, outputs.images(day))]


def _with_prompts(folder: Path, names: list[str]) -> list[tuple[Path, str]]:
    facts = load_facts(folder, names) if names else {}
    return [(folder / name, f"{facts[name]['prompt']} {_day(folder, name)}") for name in names]


def _day(folder: Path, name: str) -> str:
    match = FAVOURITE_NAME.fullmatch(name)
    return match[1] if match else folder.name


def _make_thumbnail(workspace: Workspace, page: str, path: Path) -> Path:
    target = workspace.session_dir(page) / f"small-{path.parent.name}-{path.stem}.jpg"
    if not target.exists():
        buffer = io.BytesIO()
        _read_thumbnail(path).save(buffer, "JPEG", quality=85)
        storage.write_bytes(target, buffer.getvalue())
    return target


def _read_thumbnail(path: Path) -> Image.Image:
    """Return an image's thumbnail; a plain grey one for a file that cannot be read, which must not hide the others."""
    try:
        with Image.open(io.BytesIO(storage.read_bytes(path, _LIMIT)), formats=("PNG",)) as image:
            if image.width * image.height <= _MAX_PIXELS:
                thumbnail = image.convert("RGB")
                thumbnail.thumbnail((_SIDE, _SIDE))
                return thumbnail
    except Exception as error:  # Pillow raises many kinds for damaged files
        log.info("no thumbnail of an image: %s", error)
    return Image.new("RGB", (_SIDE, _SIDE), (128, 128, 128))
