"""Write a library as one HTML file that needs no server or network and contains nothing about this machine.

Cards may come from anybody. Jinja2 escapes every text, thumbnails are re-encoded from pixels, and the page's content
security policy allows its one script and one style sheet by their sha256, and nothing to be loaded or sent.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ... import storage
from ...errors import UserError
from ..card import Card
from ..library import Entry
from ..modelspec import to_data_url
from ..thumbnail import reencode_thumbnail

SIDE = 256  # pixels of a thumbnail
_SMALL, _MANY = 176, 500  # the displayed width, for pages of more concepts: 3,000 take 27 MB rather than 46
_FOLDER = Path(__file__).parent
_BASES = {"tiny": "built-in", "sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
_CONSENT = {"yes": "the person agrees", "no": "the person does not agree", "unknown": "consent not known"}


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
    """Write `to/index.html` with the newest undamaged version of each concept; return its path and their number.

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
    from jinja2 import Environment, StrictUndefined

    script, style = (storage.read_bytes(_FOLDER / name, 100_000).decode() for name in ("page.js", "page.css"))
    template = storage.read_bytes(_FOLDER / "page.html", 100_000).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title,
        exhibits=items,
        kinds=sorted({item.kind for item in items}),
        bases=[base for base in _BASES.values() if any(item.base == base for item in items)],
        script=script,
        style=style,
        script_sum=_csp_hash(script),
        style_sum=_csp_hash(style),
    )


def _csp_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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
        "Consent": f"{_CONSENT[card.consent]} {card.consent_note}".strip() if card.kind == "person" else "",
        "Version": f"{entry.token.version}{f' ({versions} here)' if versions > 1 else ''}",
        "Date": card.created[:10],
        "Identity": (entry.identity or "")[:16],
    }
    search = " ".join((token, card.title, card.class_noun, card.author, card.description, card.license)).lower()
    return GalleryItem(
        token,
        card.title or entry.token.name,
        card.kind,
        _BASES[card.base],
        thumbnail,
        card.description,
        tuple((name, text) for name, text in facts.items() if text),
        card.prompts,
        search,
    )
