"""Delete concepts on the page, and restore them from the trash."""

from __future__ import annotations

from ....concepts.library import Library
from ....concepts.trash import RETENTION, Trash
from ....errors import UserError
from .concept_details import parse_token


def deletion_question(library: Library, word: object, others: bool) -> tuple[str, int]:
    """Return the confirmation question for a deletion, and the concept's number of versions. others: whether other
    users share the library. Raises UserError."""
    token = library.find(parse_token(word)).token
    versions = library.versions(token)
    question = f"Delete {token}? It can be brought back for {RETENTION.days} days."
    if others:
        question += " The library belongs to all who use this app: it goes for everyone."
    return question, len(versions)


def delete(library: Library, word: object, all_versions: object) -> tuple[str, str]:
    """Delete a concept; return the message and the deletion's name for `undo_deletion`. Raises UserError."""
    token = library.find(parse_token(word)).token
    deletion = Trash(library).delete(token.unversioned() if all_versions is True else token, all_versions is True)
    return f"Deleted: {_join_tokens(deletion.tokens)}.", deletion.name


def undo_deletion(library: Library, name: object) -> tuple[str, str]:
    """Restore a deletion; return the message and the restored token. Raises UserError."""
    if not name:
        raise UserError("Nothing is chosen.", "Choose what is to come back.")
    restored = Trash(library).restore(name)
    return f"Back again: {_join_tokens(restored)}.", str(restored[-1]) if restored else ""


def list_deletions(library: Library) -> list[tuple[str, str]]:
    """List the deletions that can be undone as (label, name), newest first. Raises UserError."""
    return [
        (f"{_join_tokens(deletion.tokens)}, {deletion.deleted_at:%d %B %H:%M} UTC", deletion.name)
        for deletion in Trash(library).deletions()
    ]


def empty_trash(library: Library) -> str:
    """Empty the trash for good; return the message. Raises UserError."""
    count = Trash(library).empty()
    return f"Gone for good: {count} concept{'s' * (count != 1)}." if count else "The trash was empty."


def _join_tokens(tokens) -> str:
    """Join tokens; a concept of which several versions were deleted is named once."""
    if len(tokens) == 1:
        return str(tokens[0])
    return ", ".join(
        f"{word} ({len(tokens)} versions)" for word in dict.fromkeys(str(token.unversioned()) for token in tokens)
    )
