"""Show the details of one concept on the page; edit its card, rename it, delete and restore it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ....concepts.card import BASE_TITLES, Card
from ....concepts.library import Entry, Library
from ....concepts.trash import RETENTION, Trash
from ....display.units import format_bytes
from ....errors import UserError
from ....evaluation.concept_score import ConceptScores, explain_scores, format_scores
from ....prompts import Token
from .tiles import thumbnail_data_url

LICENCES = {  # choices on the page; any other SPDX identifier can be typed
    "": "Not stated",
    "CC0-1.0": "CC0-1.0: any use, no attribution",
    "CC-BY-4.0": "CC-BY-4.0: any use, with attribution",
    "CC-BY-SA-4.0": "CC-BY-SA-4.0: any use, with attribution, under the same licence",
    "CC-BY-NC-4.0": "CC-BY-NC-4.0: non-commercial use, with attribution",
    "MIT": "MIT",
    "Apache-2.0": "Apache-2.0",
    "creativeml-openrail-m": "CreativeML OpenRAIL-M: as Stable Diffusion 1.x",
}
CONSENT = {"unknown": "Unknown", "yes": "Yes", "no": "No"}
_FIELDS = {"title", "description", "kind", "class_noun", "license", "author", "consent", "consent_note", "prompts"}


@dataclass(frozen=True)
class ConceptDetails:
    """A concept as the page shows it. token: with its version; thumbnail: a data URL or ""; facts: (name, text), known
    ones only; quality: sentences on its scores; prompts: to try, at least one; versions: their tokens, oldest first;
    card: None if the file is damaged, which the facts then describe."""

    token: str
    title: str
    thumbnail: str
    facts: tuple[tuple[str, str], ...]
    quality: tuple[str, ...]
    prompts: tuple[str, ...]
    versions: tuple[str, ...]
    card: Card | None

    @property
    def prompt_token(self) -> str:
        """The token to write in prompts: without a version for the newest."""
        return str(Token.parse(self.token).unversioned()) if self.token == self.versions[-1] else self.token


def concept_details(library: Library, token_text: object) -> ConceptDetails:
    """Look up the concept of a token. Raises UserError."""
    entry = library.find(parse_token(token_text))
    versions = tuple(str(token) for token in library.versions(entry.token)) or (str(entry.token),)
    if entry.card is None:
        damage_facts = (("Damaged", str(entry.damaged)), ("File", format_bytes(entry.size)))
        return ConceptDetails(str(entry.token), "", "", damage_facts, (), (), versions, None)
    card = entry.card
    facts = tuple((name, text) for name, text in entry_facts(entry) if text)
    details = ConceptDetails(
        str(entry.token),
        card.title,
        thumbnail_data_url(entry),
        facts,
        _quality_sentences(card),
        card.prompts,
        versions,
        card,
    )
    return details if card.prompts else replace(details, prompts=(_example_prompt(card, details.prompt_token),))


def entry_facts(entry: Entry) -> list[tuple[str, str]]:
    """Return (name, text) facts of a concept, with "" for unknown ones; [] if its file is damaged."""
    card = entry.card
    if card is None:
        return []
    consent = "" if card.kind != "person" and card.consent == "unknown" else CONSENT[card.consent]
    method = " ".join(filter(None, (card.method, f"in {card.steps:,} steps" if card.steps else "")))
    settings = ", ".join(f"{name} {_shorten(value)}" for name, value in card.recipe.items())
    return [
        ("Kind", f"{card.kind}: {card.class_noun}" if card.class_noun else card.kind),
        ("Model", BASE_TITLES[card.base] + (f" ({card.base_name})" if card.base_name else "")),
        ("Contents", f"{entry.contents}, {format_bytes(entry.size)}"),
        ("Method", method),
        ("Created", card.created.replace("T", " ").removesuffix("Z")),
        ("Settings", settings),
        ("Trigger words", ", ".join(card.trigger_words)),
        ("Author", card.author),
        ("Licence", card.license),
        ("Consent", consent + (f": {card.consent_note}" if consent and card.consent_note else "")),
        ("Scores", _figures(card)),
        ("SHA-256", (entry.identity or "")[:16]),
    ]


def save_card(library: Library, token_text: object, values: Mapping[str, object]) -> Token:
    """Save edited card fields (those of `_FIELDS`; prompts one a line). Raises UserError."""
    changes: dict[str, object] = {}
    for name, value in values.items():
        if name not in _FIELDS:
            continue
        if not isinstance(value, str | None):
            raise UserError(f"{name} must be text.")
        lines = (line.strip() for line in (value or "").splitlines())
        changes[name] = tuple(filter(None, lines)) if name == "prompts" else value or ""
    return library.edit(parse_token(token_text), changes)


def rename_all_versions(library: Library, token_text: object, new_name: object) -> Token:
    """Rename all versions of a concept; return the newest one's new token. Raises UserError."""
    to = parse_token(new_name, "The new name is empty.", "Write it like <me/duck>.")
    if to.version:
        raise UserError("A new name has no version: all versions keep theirs.", f"Write {to.unversioned()}.")
    return library.rename(parse_token(token_text).unversioned(), to)[-1]


def parse_token(token_text: object, message: str = "No concept is selected.", hint: str = "Click one first.") -> Token:
    """Parse the token that a page sent. Raises UserError, with `message` and `hint` if it sent none."""
    if not token_text or not isinstance(token_text, str):
        raise UserError(message, hint)
    return Token.parse(token_text)


def _example_prompt(card: Card, token: str) -> str:
    return f"a lighthouse in the style of {token}" if card.kind == "style" else f"a photo of {token} on the beach"


def _quality_sentences(card: Card) -> tuple[str, ...]:
    scores = _scores(card)
    return tuple(explain_scores(scores, card.class_noun or "other thing", card.kind)) if scores else ()


def _figures(card: Card) -> str:
    scores = _scores(card)
    return format_scores(scores) if scores else ", ".join(f"{name} {value:.2f}" for name, value in card.scores.items())


def _scores(card: Card) -> ConceptScores | None:
    return ConceptScores.from_dict(card.scores)


def _shorten(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 40 else f"{value}"


def token_choices(library: Library, chosen: str) -> tuple[tuple[list[str], str | None, str | None], list[str]]:
    """Choices for two dropdowns: all versioned tokens, the default pair (selected, previous version), and the newest
    versions' unversioned tokens."""
    try:
        tokens = [str(entry.token) for entry in library.entries() if entry.card]
        selected = Token.parse(chosen) if chosen else None
    except UserError:
        return ([], None, None), []
    same_concept = [token for token in tokens if selected and selected.unversioned().matches(Token.parse(token))]
    first = chosen if chosen in same_concept else next(reversed(same_concept), None)
    second = next((token for token in reversed(same_concept) if token != first), None)
    newest = dict.fromkeys(str(Token.parse(token).unversioned()) for token in tokens)
    return (tokens, first, second), list(newest)


def deletion_question(library: Library, token_text: object, others: bool) -> tuple[str, int]:
    """Return the confirmation question for a deletion, and the concept's number of versions. others: whether other
    users share the library. Raises UserError."""
    token = library.find(parse_token(token_text)).token
    versions = library.versions(token)
    question = f"Delete {token}? It can be restored for {RETENTION.days} days."
    if others:
        question += " The library is shared: it is deleted for all users."
    return question, len(versions)


def delete(library: Library, token_text: object, all_versions: object) -> tuple[str, str]:
    """Delete a concept; return the message and the deletion's name for `undo_deletion`. Raises UserError."""
    token = library.find(parse_token(token_text)).token
    deletion = Trash(library).delete(token.unversioned() if all_versions is True else token, all_versions is True)
    return f"Deleted: {_join_tokens(deletion.tokens)}.", deletion.name


def undo_deletion(library: Library, name: object) -> tuple[str, str]:
    """Restore a deletion; return the message and the restored token. Raises UserError."""
    if not name or not isinstance(name, str):
        raise UserError("Nothing is selected.", "Choose what to restore.")
    restored = Trash(library).restore(name)
    return f"Restored: {_join_tokens(restored)}.", str(restored[-1]) if restored else ""


def list_deletions(library: Library) -> list[tuple[str, str]]:
    """List the deletions that can be undone as (label, name), newest first. Raises UserError."""
    return [
        (f"{_join_tokens(deletion.tokens)}, {deletion.deleted_at:%d %B %H:%M} UTC", deletion.name)
        for deletion in Trash(library).deletions()
    ]


def empty_trash(library: Library) -> str:
    """Empty the trash for good; return the message. Raises UserError."""
    count = Trash(library).empty()
    return f"Deleted for good: {count} concept{'s' * (count != 1)}." if count else "The trash was empty."


def _join_tokens(tokens) -> str:
    """Join tokens; a concept of which several versions were deleted is named once."""
    if len(tokens) == 1:
        return str(tokens[0])
    return ", ".join(
        f"{word} ({len(tokens)} versions)" for word in dict.fromkeys(str(token.unversioned()) for token in tokens)
    )
