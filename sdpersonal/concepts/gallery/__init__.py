"""Write a library as one HTML file that needs no server or network and contains nothing about this machine.

Cards may come from anybody. Jinja2 escapes every text, thumbnails are re-encoded from pixels, and the page's content
security policy allows its one script and one style sheet by their sha256, and nothing to be loaded or sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ... import storage
from ...display.html import render_template
from ...errors import UserError
from ..card import BASE_LABELS, CONSENT_TEXTS, Card
from ..library import Entry
from ..modelspec import to_data_url
from ..thumbnail import reencode_thumbnail

SIDE = 256  # pixels of a thumbnail
_SMALL, _MANY = 176, 500  # the displayed width, for pages of more concepts: 3,000 take 27 MB rather than 46
_TEMPLATE = Path(__file__).with_name("page.html")


@dataclasses.dataclass(frozen=True)
class GalleryItem:
    """What the page shows of one concept: plain text, and a data URL for the thumbnail."""

    token: str
    title: str
    kind: str
    base: str
    thumbnail: str
    description: str
    facts: tuple[tuple[str, str], ...]
    prompts: tuple[str, ...]
    search: str


def write_gallery(
    entries: Sequence[Entry],
    folder: Path,
    title: str = "Concepts",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Path, int]:
    """Write `folder/index.html` with the newest undamaged version of each concept; return its path and their number.

    Raises UserError, DiskFull.
    """
    path = storage.make_folder(folder) / "index.html"
    newest = _newest_versions(entries)
    side = SIDE if len(newest) <= _MANY else _SMALL
    items = []
    for entry, card, versions in newest:
        items.append(_gallery_item(entry, card, versions, side))
        progress(len(items), len(newest))
    storage.write_text(path, render_gallery(items, title))
    return path, len(items)


def render_gallery(items: Sequence[GalleryItem], title: str) -> str:
    """Render the page as HTML."""
    return render_template(
        _TEMPLATE,
        title=title,
        items=items,
        kinds=sorted({item.kind for item in items}),
        bases=[base for base in BASE_LABELS.values() if any(item.base == base for item in items)],
    )


def _newest_versions(entries: Iterable[Entry]) -> list[tuple[Entry, Card, int]]:
    """Return the newest undamaged version of each concept, its card, and its number of undamaged versions."""
    newest: dict[str, tuple[Entry, Card, int]] = {}
    for entry in entries:  # oldest version first
        if entry.card and not entry.damaged:
            name = str(entry.token.unversioned())
            newest[name] = entry, entry.card, newest[name][2] + 1 if name in newest else 1
    return list(newest.values())


def _gallery_item(entry: Entry, card: Card, versions: int, side: int) -> GalleryItem:
    image, thumbnail = entry.thumbnail, ""
    with suppress(UserError):  # an unreadable thumbnail is no reason to leave out the concept
        thumbnail = to_data_url(reencode_thumbnail(image, side)) if image else ""
    token = str(entry.token.unversioned())
    facts = {
        "Class": card.class_noun,
        "Holds": entry.contents,
        "Made for": card.base_name,
        "Made with": ", ".join(part for part in (card.method, f"{card.steps} steps" if card.steps else "") if part),
        "Measured": ", ".join(f"{name} {value:.2f}" for name, value in card.scores.items()),
        "Author": card.author,
        "Licence": card.license or "not stated",
        "Consent": f"{CONSENT_TEXTS[card.consent]} {card.consent_note}".strip() if card.kind == "person" else "",
        "Version": f"{entry.token.version}{f' ({versions} here)' if versions > 1 else ''}",
        "Date": card.created[:10],
        "Identity": (entry.identity or "")[:16],
    }
    search = " ".join((token, card.title, card.class_noun, card.author, card.description, card.license)).lower()
    return GalleryItem(
        token,
        card.title or entry.token.name,
        card.kind,
        BASE_LABELS[card.base],
        thumbnail,
        card.description,
        tuple((name, text) for name, text in facts.items() if text),
        card.prompts,
        search,
    )
