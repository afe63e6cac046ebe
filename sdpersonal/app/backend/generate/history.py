"""What was drawn before: a page of small pictures, found by words."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .... import storage
from ....outputs import Outputs
from ....outputs.facts import load_facts
from ....outputs.folder import FAVOURITE_NAME, FAVOURITES_FOLDER
from ..render_job import SessionImage
from ..workspace import Workspace

PAGE_SIZE = 48  # pictures at once
_SIDE = 192  # pixels of a small one
_LIMIT = 1 << 28


@dataclass(frozen=True)
class HistoryPage:
    """One page. Of `results` the small pictures are shown. number: of the page, from 0; total: of all pages."""

    results: tuple[SessionImage, ...]
    number: int
    total: int

    @property
    def note(self) -> str:
        if not self.total:
            return "Nothing found."
        return f"{self.number * PAGE_SIZE + 1} to {min(self.total, (self.number + 1) * PAGE_SIZE)} of {self.total:,}"


def find_images(
    house: Workspace, page: str, user: str | None, search: str = "", starred: bool = False, number: int = 0
) -> HistoryPage:
    """The pictures whose prompt has all the words of `search`, newest first. number: of the page, from 0."""
    outputs = house.pictures(user)
    words = str(search or "").lower().split()
    matching = [path for path, prompt in _all_images(outputs, starred) if all(word in prompt.lower() for word in words)]
    number = max(0, min(number, (len(matching) - 1) // PAGE_SIZE))
    paths = matching[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
    small = [_make_thumbnail(house, page, path) for path in paths]
    results = tuple(
        SessionImage(path, place, _day(path.parent, path.name)) for path, place in zip(paths, small, strict=True)
    )
    return HistoryPage(results, number, len(matching))


def publish_image(house: Workspace, page: str, result: SessionImage) -> SessionImage:
    """With the whole picture as what the page may serve."""
    return SessionImage(result.kept, house.copy(result.kept, page), result.caption)


def _all_images(outputs: Outputs, starred: bool) -> list[tuple[Path, str]]:
    if starred:
        return _with_prompts(outputs.folder / FAVOURITES_FOLDER, outputs.favourites())
    return [each for day in outputs.days() for each in _with_prompts(outputs.folder / day, outputs.pictures(day))]


def _with_prompts(folder: Path, names: list[str]) -> list[tuple[Path, str]]:
    facts = load_facts(folder, names) if names else {}
    return [(folder / name, f"{facts[name]['prompt']} {_day(folder, name)}") for name in names]


def _day(folder: Path, name: str) -> str:
    found = FAVOURITE_NAME.fullmatch(name)
    return found[1] if found else folder.name


def _make_thumbnail(house: Workspace, page: str, path: Path) -> Path:
    place = house.room(page) / f"small-{path.parent.name}-{path.stem}.jpg"
    if not place.exists():
        picture = Image.open(io.BytesIO(storage.read_bytes(path, _LIMIT))).convert("RGB")
        picture.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        storage.write_bytes(place, buffer.getvalue())
    return place
