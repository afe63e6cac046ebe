"""Deleting concepts on a page, and bringing them back."""

from __future__ import annotations

from ....concepts.library import Library
from ....concepts.trash import RETENTION, Trash
from ....errors import UserError
from .concept_details import parse_token


def deletion_question(library: Library, word: object, others: bool) -> tuple[str, int]:
    """What is asked before a concept is deleted, and how many versions it has. others: the library is not one's own
    alone. Raises UserError."""
    token = library.find(parse_token(word)).token
    versions = library.versions(token)
    said = f"Delete {token}? It can be brought back for {RETENTION.days} days."
    if others:
        said += " The library belongs to all who use this app: it goes for everyone."
    return said, len(versions)


def delete(library: Library, word: object, all_versions: object) -> tuple[str, str]:
    """What to say, and the deletion's name for `undo`. Raises UserError."""
    token = library.find(parse_token(word)).token
    gone = Trash(library).put(token.unversioned() if all_versions is True else token, all_versions is True)
    return f"Deleted: {_join_tokens(gone.tokens)}.", gone.name


def undo_deletion(library: Library, name: object) -> tuple[str, str]:
    """What to say, and the token that is back. Raises UserError."""
    if not name:
        raise UserError("Nothing is chosen.", "Choose what is to come back.")
    back = Trash(library).restore(name)
    return f"Back again: {_join_tokens(back)}.", str(back[-1]) if back else ""


def list_deletions(library: Library) -> list[tuple[str, str]]:
    """What can come back, newest first: (words, name). Raises UserError."""
    return [
        (f"{_join_tokens(each.tokens)}, {each.deleted_at:%d %B %H:%M} UTC", each.name) for each in Trash(library).list()
    ]


def empty_trash(library: Library) -> str:
    """Delete for good all that was deleted. Raises UserError."""
    count = Trash(library).empty()
    return f"Gone for good: {count} concept{'s' * (count != 1)}." if count else "The trash was empty."


def _join_tokens(tokens) -> str:
    """One that several versions went of is named once."""
    if len(tokens) == 1:
        return str(tokens[0])
    return ", ".join(
        f"{word} ({len(tokens)} versions)" for word in dict.fromkeys(str(each.unversioned()) for each in tokens)
    )
