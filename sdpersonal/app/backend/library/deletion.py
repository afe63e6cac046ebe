"""Deleting concepts on a page, and bringing them back."""

from __future__ import annotations

from ....concepts.library import Library
from ....concepts.trash import KEPT, Trash
from ....errors import PersonalError
from .concept_details import token_of


def question(library: Library, word: object, others: bool) -> tuple[str, int]:
    """What is asked before a concept is deleted, and how many versions it has. others: the library is not one's own
    alone. Raises PersonalError."""
    token = library.find(token_of(word)).token
    versions = library.versions(token)
    said = f"Delete {token}? It can be brought back for {KEPT.days} days."
    if others:
        said += " The library belongs to all who use this app: it goes for everyone."
    return said, len(versions)


def delete(library: Library, word: object, all_versions: object) -> tuple[str, str]:
    """What to say, and the deletion's name for `undo`. Raises PersonalError."""
    token = library.find(token_of(word)).token
    gone = Trash(library).put(token.unversioned() if all_versions is True else token, all_versions is True)
    return f"Deleted: {_named(gone.tokens)}.", gone.name


def undo(library: Library, name: object) -> tuple[str, str]:
    """What to say, and the token that is back. Raises PersonalError."""
    if not name:
        raise PersonalError("Nothing is chosen.", "Choose what is to come back.")
    back = Trash(library).restore(name)
    return f"Back again: {_named(back)}.", str(back[-1]) if back else ""


def deleted(library: Library) -> list[tuple[str, str]]:
    """What can come back, newest first: (words, name). Raises PersonalError."""
    return [(f"{_named(each.tokens)}, {each.when:%d %B %H:%M} UTC", each.name) for each in Trash(library).list()]


def empty(library: Library) -> str:
    """Delete for good all that was deleted. Raises PersonalError."""
    count = Trash(library).empty()
    return f"Gone for good: {count} concept{'s' * (count != 1)}." if count else "The trash was empty."


def _named(tokens) -> str:
    """One that several versions went of is named once."""
    if len(tokens) == 1:
        return str(tokens[0])
    return ", ".join(
        f"{word} ({len(tokens)} versions)" for word in dict.fromkeys(str(each.unversioned()) for each in tokens)
    )
