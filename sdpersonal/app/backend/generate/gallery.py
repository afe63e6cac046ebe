"""Find a user's saved images by id; list, search, mark, delete and restore them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import UserError
from ....outputs import ImageIndex, Outputs, OutputsTrash, SavedImage
from ....outputs.facts import Facts
from ....outputs.index import parse_id, sort_key
from ..workspace import Workspace

MAX_PAGE = 500  # images of one answer
MAX_IDS = 2000  # images that are marked, deleted or downloaded at once
MAX_SEARCH = 500  # characters
_MANY = 300  # images that take long enough to read for somebody to wait


@dataclass(frozen=True)
class GalleryPage:
    """A part of the gallery. images: entries; total: how many images match; next_id: where the next part begins."""

    images: list[dict[str, Any]]
    total: int
    next_id: str | None


class Gallery:
    """The galleries of all users. Methods may be called from any thread, and raise UserError."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.index = ImageIndex()
        self._warmed: set[Path] = set()  # outputs folders

    def outputs(self, user: str | None) -> Outputs:
        return self.workspace.user_outputs(user)

    def find(self, user: str | None, image_id: object) -> SavedImage:
        """Return the user's image with this id."""
        return self.index.find(self.outputs(user), image_id)

    def page(
        self, user: str | None, search: str = "", favourites: bool = False, start: str | None = None, limit: int = 100
    ) -> GalleryPage:
        """List images whose prompt or day has all words of `search`, newest first. start: id of the first one; if it
        is gone, the list goes on with the next older one."""
        images = self.index.images(self.outputs(user), favourites)
        self._warm(user, images)
        if words := search[:MAX_SEARCH].lower().split():
            facts = self.index.facts(images)
            images = [image for image, known in zip(images, facts, strict=True) if _matches(image, known, words)]
        total = len(images)
        if start is not None:
            first = sort_key(*parse_id(start))
            images = [image for image in images if sort_key(image.day, image.name) <= first]
        limit = max(1, min(limit, MAX_PAGE))
        shown = images[:limit]
        entries = [image_entry(image, facts) for image, facts in zip(shown, self.index.facts(shown), strict=True)]
        return GalleryPage(entries, total, images[limit].id if len(images) > limit else None)

    def entry(self, user: str | None, image_id: object) -> dict[str, Any]:
        """Return an image as the page shows it."""
        image = self.find(user, image_id)
        return image_entry(image, self.index.facts([image])[0])

    def entry_of_file(self, user: str | None, path: Path) -> dict[str, Any]:
        """Return an image that was just saved as the page shows it."""
        return self.entry(user, f"{path.parent.name}/{path.stem}")

    def set_favourite(self, user: str | None, ids: Sequence[str], on: bool) -> list[str]:
        """Mark images as favourites, or not; return the ids of those that are there."""
        outputs = self.outputs(user)
        images = self.find_all(user, ids)
        if on and (grids := [image for image in images if image.kind == "grid"]):
            raise UserError("A grid cannot be a favourite.", "Mark its images." if len(grids) < len(images) else "")
        for image in images:
            if on:
                outputs.add_favourite(outputs.folder / image.day / image.name)
            elif image.is_favourite:
                outputs.remove_favourite(image.path)
        return [image.id for image in images]

    def delete(self, user: str | None, ids: Sequence[str]) -> tuple[str, list[str]]:
        """Move images to the trash; return the deletion's name for `restore`, and the ids of what was deleted."""
        images = self.find_all(user, ids)
        name = OutputsTrash(self.outputs(user)).delete([(image.day, image.name) for image in images])
        return name, [image.id for image in images]

    def restore(self, user: str | None, deletion: str) -> int:
        """Restore a deletion; return the number of images."""
        return OutputsTrash(self.outputs(user)).restore(deletion)

    def _warm(self, user: str | None, images: Sequence[SavedImage]) -> None:
        """Read the facts of many images before somebody searches them, once and in the background."""
        folder = self.outputs(user).folder
        if len(images) < _MANY or folder in self._warmed:
            return
        self._warmed.add(folder)

        def read() -> None:
            with suppress(UserError):  # whoever searches them is told
                self.index.facts(images)

        threading.Thread(target=read, name="facts of images", daemon=True).start()

    def find_all(self, user: str | None, ids: Sequence[str]) -> list[SavedImage]:
        """Return the images that are there, of at most `MAX_IDS` ids."""
        if not 1 <= len(ids) <= MAX_IDS:
            raise UserError(f"Choose 1 to {MAX_IDS:,} images.")
        wanted = [parse_id(image_id) for image_id in dict.fromkeys(ids)]
        if len(wanted) == 1:
            return [self.find(user, ids[0])]
        existing = {(image.day, image.name): image for image in self.index.images(self.outputs(user))}
        return [existing[key] for key in wanted if key in existing]


def image_entry(image: SavedImage, facts: Facts) -> dict[str, Any]:
    """Return an image as the page shows it. Times are seconds since 1970."""
    try:
        status = image.path.stat()
        created, mark = status.st_mtime, f"?v={status.st_mtime_ns:x}" if image.kind == "grid" else ""
    except OSError:  # deleted just now
        created, mark = 0.0, ""
    return {
        "id": image.id,
        "url": f"/app/images/{image.id}.png{mark}",
        "thumb": f"/app/thumbs/{image.id}.jpg{mark}",
        "page": f"/app/grids/{image.id}.html" if image.name.endswith("-sheet.png") else None,
        "width": facts["width"],
        "height": facts["height"],
        "favourite": image.is_favourite,
        "prompt": facts["prompt"],
        "created": created,
        "kind": image.kind,
    }


def _matches(image: SavedImage, facts: Facts, words: Sequence[str]) -> bool:
    text = f"{facts['prompt'].lower()} {image.day}"
    return all(word in text for word in words)
