"""Write one HTML page of all images, which are shown by their relative path.

Prompts are put into the page as JSON and become text, never markup. The page's policy allows images beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import storage
from ..display.html import render_template
from .facts import load_facts
from .folder import FAVOURITES_FOLDER, Outputs

_TEMPLATE = Path(__file__).with_name("page.html")


def write_page(outputs: Outputs, title: str = "Pictures") -> tuple[Path, int]:
    """Write `index.html` into the folder. Returns its path and the number of images it shows.

    Only images that are new since the last time are opened. Raises UserError, DiskFull.
    """
    storage.make_folder(outputs.folder)
    path = outputs.folder / "index.html"
    # Without the lock, a page begun earlier could overwrite a later one.
    with storage.lock(outputs.folder, timeout=storage.LOCK_TIMEOUT):
        for place in (outputs.folder, *(outputs.folder / day for day in outputs.days())):
            storage.remove_leftovers(place)  # half-written files of killed processes
        images = list(_list_images(outputs))
        storage.write_text(path, render_page(images, title))
    return path, len(images)


def render_page(images: list[dict[str, Any]], title: str) -> str:
    """Render the HTML. images: as `_list_images` yields them."""
    return render_template(
        _TEMPLATE,
        title=title,
        count=len(images),
        images=json.dumps(images, separators=(",", ":")).replace("<", "\\u003c"),  # no "</script>" in a prompt
    )


def _list_images(outputs: Outputs) -> Iterator[dict[str, Any]]:
    """Yield the images, favourites first, then the newest. path: relative to the page."""
    favourites = outputs.favourites()
    days = {day: outputs.images(day) for day in outputs.days()}
    originals = {f"{day}-{name}" for day, names in days.items() for name in names}
    orphans = [name for name in favourites if name not in originals]  # their originals were deleted
    left = load_facts(outputs.folder / FAVOURITES_FOLDER, orphans) if orphans else {}
    known = {day: load_facts(outputs.folder / day, names) for day, names in days.items()}
    for name in favourites:
        day, original = name[:10], name[11:]  # `FAVOURITE_NAME`: the day, then the image's name
        if name in left:
            yield {"path": f"{FAVOURITES_FOLDER}/{name}", "day": day, "star": True} | dict(left[name])
        else:
            yield {"path": f"{day}/{original}", "day": day, "star": True} | dict(known[day][original])
    marked = set(favourites)
    for day, names in days.items():
        for name in names:
            if f"{day}-{name}" not in marked:
                yield {"path": f"{day}/{name}", "day": day, "star": False} | dict(known[day][name])
