"""Show the details of one concept on the page; edit its card, and rename it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ....concepts.card import Card
from ....concepts.importers.to_concept import token_of_file
from ....concepts.library import Library
from ....errors import UserError
from ....prompts import Token
from .card_text import main_facts, reproducing_facts, score_facts, settings_facts, verdict
from .listing import concept_summary
from .thumbnails import thumb_url

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
FIELDS = ("title", "description", "kind", "class_noun", "license", "author", "consent", "consent_note", "prompts")
_TRAIN_METHODS = {  # by the card's method
    "dreambooth-lora": "lora",
    "dreambooth-pivotal": "pivotal",
    "textual-inversion": "textual-inversion",
}
_LABELS = {
    "title": "Title",
    "description": "Description",
    "kind": "Kind",
    "class_noun": "Class noun",
    "license": "Licence",
    "author": "Author",
    "consent": "Consent",
    "consent_note": "Consent note",
    "prompts": "Prompts to try",
}


def concept_details(library: Library, token_text: object, loaded: str) -> dict[str, Any]:
    """Look up the concept of a token; return its `concept_summary`, and what its card on the page shows.

    token: with its version; name: as it is written in prompts; image: a large thumbnail; verdict: sentences on its
    scores; prompts: to try, at least one; facts, settings, scores, reproducing: [[name, text]]; versions: [{token,
    version}], oldest first; card: its fields to edit, null if the file is damaged; method: of the Train tab, by which
    it was trained, or "". Raises UserError.
    """
    entry = library.find(parse_token(token_text))
    versions = library.versions(entry.token) or [entry.token]
    name = str(entry.token.unversioned() if entry.token == versions[-1] else entry.token)
    card = entry.card
    return concept_summary(entry, loaded) | {
        "token": str(entry.token),
        "name": name,
        "image": thumb_url(entry, "large"),
        "description": card.description if card else "",
        "verdict": verdict(card) if card else [],
        "prompts": _prompts(card, name) if card else [],
        "facts": main_facts(entry),
        "settings": settings_facts(card) if card else [],
        "scores": score_facts(card) if card else [],
        "reproducing": reproducing_facts(entry),
        "versions": [{"token": str(token), "version": token.version} for token in versions],
        "card": _card_fields(card) if card else None,
        "method": _TRAIN_METHODS.get(card.method, "") if card else "",
    }


def save_card(library: Library, token_text: object, values: Mapping[str, object]) -> Token:
    """Save edited card fields (those of `FIELDS`; prompts one a line). Raises UserError."""
    changes: dict[str, object] = {}
    for name, value in values.items():
        if name not in FIELDS:
            continue
        if not isinstance(value, str | None):
            raise UserError(f"{_LABELS[name]} must be text.")
        lines = (line.strip() for line in (value or "").splitlines())
        changes[name] = tuple(filter(None, lines)) if name == "prompts" else value or ""
    try:
        return library.edit(parse_token(token_text), changes)
    except UserError as error:
        raise _with_labels(error) from None


def rename_concept(library: Library, token_text: object, new_name: object) -> tuple[Token, str]:
    """Rename all versions of a concept, also in their prompts; return the newest one's new token and a message.

    new_name: a token, or any words: "Rex the Dog" is `<me/rex-the-dog>`. Raises UserError.
    """
    old = library.find(parse_token(token_text)).token.unversioned()
    to = _token_of_words(new_name, str(old.owner or "me"))
    if to.version:
        raise UserError("A new name has no version: all versions keep theirs.", f"Write {to.unversioned()}.")
    renamed = library.rename(old, to)
    newest = library.find(renamed[-1])
    message = f"{old} is now {newest.token.unversioned()}"
    message += f", in all {len(renamed)} versions" if len(renamed) > 1 else ""
    message += "; its prompts to try have the new name" if newest.card and newest.card.prompts else ""
    return newest.token, f"{message}."


def parse_token(token_text: object, message: str = "No concept is selected.", hint: str = "Click one first.") -> Token:
    """Parse the token that a page sent. Raises UserError, with `message` and `hint` if it sent none."""
    if not token_text or not isinstance(token_text, str):
        raise UserError(message, hint)
    return Token.parse(token_text)


def _token_of_words(text: object, owner: str) -> Token:
    if not text or not isinstance(text, str) or len(text) > 200:
        raise UserError("The new name is empty.", "Write it like <me/duck>.")
    try:
        token = Token.parse(text.strip())
    except UserError:
        made = token_of_file(text, owner)
        if made is None:
            raise
        token = made
    return token if token.owner else dataclasses.replace(token, owner=owner)


def _prompts(card: Card, name: str) -> list[str]:
    example = f"a lighthouse in the style of {name}" if card.kind == "style" else f"a photo of {name} on the beach"
    return list(card.prompts) or [example]


def _card_fields(card: Card) -> dict[str, str]:
    values: dict[str, Any] = {name: getattr(card, name) for name in FIELDS}
    return values | {"prompts": "\n".join(card.prompts)}


def _with_labels(error: UserError) -> UserError:
    """Return the card's error with the field's label on the page."""
    message = error.message
    for name, label in _LABELS.items():
        message = message.replace(f"The card's {name} ", f"{label} ").replace(f"The card's {name}.", f"{label} ")
    return UserError(message, error.hint)
