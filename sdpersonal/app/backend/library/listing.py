"""List the library's concepts for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from ....concepts.card import BASE_LABELS, BASE_TITLES
from ....concepts.library import Entry, Library
from .thumbnails import thumb_url

MAX_CONCEPTS = 10_000  # that the page is told of


def newest_versions(entries: Iterable[Entry]) -> list[Entry]:
    """Keep the newest version of each concept, in the order of a library's listing."""
    return list({entry.token.unversioned(): entry for entry in entries}.values())


def concept_list(entries: Sequence[Entry], loaded: str) -> dict[str, Any]:
    """Return all concepts, by their newest versions, as the page reads them.

    entries: of all versions; loaded: kind of the loaded model.
    """
    counts = Counter(entry.token.unversioned() for entry in entries)
    newest = newest_versions(entries)
    concepts = [
        concept_summary(entry, loaded) | {"versions": counts[entry.token.unversioned()]}
        for entry in newest[:MAX_CONCEPTS]
    ]
    return {"concepts": concepts, "note": _note(newest)}


def concept_summary(entry: Entry, loaded: str) -> dict[str, Any]:
    """Return what the page shows of a concept in a list. created: seconds since 1970; text: all that is searched;
    is_lora: whether it changes the model's weights; has_words: whether it stands for something in a prompt."""
    token, card = str(entry.token.unversioned()), entry.card
    summary: dict[str, Any] = {
        "token": token,
        "title": "",
        "kind": "",
        "noun": "",
        "base": "",
        "model": "",
        "fits": False,
        "damaged": entry.damaged or "",
        "thumb": thumb_url(entry),
        "created": created_at(entry),
        "author": "",
        "text": f"{token} damaged".casefold(),
        "is_lora": False,
        "has_words": False,
    }
    if card is None:
        return summary
    texts = (token, card.title, card.description, card.class_noun, card.kind, BASE_TITLES[card.base], card.author)
    return summary | {
        "title": card.title,
        "kind": card.kind,
        "noun": card.class_noun,
        "base": card.base,
        "model": BASE_LABELS[card.base],
        "fits": card.base == loaded,
        "author": card.author,
        "text": " ".join(texts).casefold(),
        "is_lora": bool(entry.lora_rank or entry.kinds),
        "has_words": bool(entry.vectors or card.trigger_words),
    }


def created_at(entry: Entry) -> float:
    """Return when the concept was made, in seconds since 1970; for a damaged file when it was written."""
    with suppress(ValueError, OverflowError):
        if entry.card:
            return datetime.fromisoformat(entry.card.created).timestamp()
    with suppress(OSError):
        return entry.path.stat().st_mtime
    return 0.0


def token_choices(library: Library) -> list[dict[str, Any]]:
    """Return every version of every undamaged concept, to compare or to check: {token, newest, kind, base, thumb}."""
    entries = [entry for entry in library.entries() if entry.card]
    newest = {entry.token for entry in newest_versions(entries)}
    return [
        {
            "token": str(entry.token),
            "newest": entry.token in newest,
            "kind": entry.card.kind if entry.card else "",
            "base": entry.card.base if entry.card else "",
            "thumb": thumb_url(entry),
        }
        for entry in entries
    ]


def _note(newest: Sequence[Entry]) -> str:
    damaged = sum(bool(entry.damaged) for entry in newest)
    parts = []
    if damaged:
        parts.append("1 is damaged." if damaged == 1 else f"{damaged} are damaged.")
    if len(newest) > MAX_CONCEPTS:
        parts.append(f"The first {MAX_CONCEPTS:,} are shown.")
    return " ".join(parts)
