"""What was drawn before: a page of small pictures, found by words."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .... import storage
from ....outputs import Outputs
from ....outputs.facts import facts_of
from ....outputs.folder import FAVOURITE, FAVOURITES
from ..render_job import Result
from ..workspace import House

PAGE = 48  # pictures at once
_SIDE = 192  # pixels of a small one
_LIMIT = 1 << 28


@dataclass(frozen=True)
class Found:
    """One page. Of `results` the small pictures are shown. number: of the page, from 0; total: of all pages."""

    results: tuple[Result, ...]
    number: int
    total: int

    @property
    def note(self) -> str:
        if not self.total:
            return "Nothing found."
        return f"{self.number * PAGE + 1} to {min(self.total, (self.number + 1) * PAGE)} of {self.total:,}"


def look(house: House, page: str, user: str | None, search: str = "", starred: bool = False, number: int = 0) -> Found:
    """The pictures whose prompt has all the words of `search`, newest first. number: of the page, from 0."""
    outputs = house.pictures(user)
    words = str(search or "").lower().split()
    matching = [path for path, prompt in _all(outputs, starred) if all(word in prompt.lower() for word in words)]
    number = max(0, min(number, (len(matching) - 1) // PAGE))
    paths = matching[number * PAGE : (number + 1) * PAGE]
    small = [_small(house, page, path) for path in paths]
    results = tuple(Result(path, place, _day(path.parent, path.name)) for path, place in zip(paths, small, strict=True))
    return Found(results, number, len(matching))


def shown(house: House, page: str, result: Result) -> Result:
    """With the whole picture as what the page may serve."""
    return Result(result.kept, house.copy(result.kept, page), result.caption)


def _all(outputs: Outputs, starred: bool) -> list[tuple[Path, str]]:
    if starred:
        return _with_prompts(outputs.folder / FAVOURITES, outputs.favourites())
    return [each for day in outputs.days() for each in _with_prompts(outputs.folder / day, outputs.pictures(day))]


def _with_prompts(folder: Path, names: list[str]) -> list[tuple[Path, str]]:
    facts = facts_of(folder, names) if names else {}
    return [(folder / name, f"{facts[name]['prompt']} {_day(folder, name)}") for name in names]


def _day(folder: Path, name: str) -> str:
    found = FAVOURITE.fullmatch(name)
    return found[1] if found else folder.name


def _small(house: House, page: str, path: Path) -> Path:
    place = house.room(page) / f"small-{path.parent.name}-{path.stem}.jpg"
    if not place.exists():
        picture = Image.open(io.BytesIO(storage.read_bytes(path, _LIMIT))).convert("RGB")
        picture.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        storage.write_bytes(place, buffer.getvalue())
    return place
