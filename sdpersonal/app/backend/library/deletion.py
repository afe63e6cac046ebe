"""Delete concepts, restorable for a while, for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....concepts.library import Library
from ....concepts.trash import RETENTION, Trash
from ....errors import UserError
from ....prompts import Token
from .concept_details import parse_token


def delete(library: Library, token_text: object, all_versions: bool) -> dict[str, str]:
    """Delete a concept; return {message, undo: the deletion's name for `undo_deletion`}. Raises UserError."""
    token = library.find(parse_token(token_text)).token
    deletion = Trash(library).delete(token.unversioned() if all_versions else token, all_versions)
    return {"message": f"Deleted: {_join_tokens(deletion.tokens)}.", "undo": deletion.name}


def undo_deletion(library: Library, name: object) -> dict[str, str]:
    """Restore a deletion; return {message, token: the restored one, or ""}. Raises UserError."""
    if not name or not isinstance(name, str):
        raise UserError("Nothing is selected.", "Choose what to restore.")
    restored = Trash(library).restore(name)
    return {"message": f"Restored: {_join_tokens(restored)}.", "token": str(restored[-1]) if restored else ""}


def list_deletions(library: Library) -> dict[str, Any]:
    """List the deletions that can be undone: {deletions: [{undo, label, deleted (seconds since 1970)}], days: how long
    they are kept}, newest first. Raises UserError."""
    deletions = [
        {
            "undo": deletion.name,
            "label": _join_tokens(deletion.tokens),
            "deleted": deletion.deleted_at.timestamp(),
        }
        for deletion in Trash(library).deletions()
    ]
    return {"deletions": deletions, "days": RETENTION.days}


def empty_trash(library: Library) -> str:
    """Empty the trash for good; return the message. Raises UserError."""
    count = Trash(library).empty()
    return f"Deleted for good: {count} concept{'s' * (count != 1)}." if count else "The trash was empty."


def _join_tokens(tokens: Sequence[Token]) -> str:
    """Join tokens; a concept of which several versions were deleted is named once."""
    if len(tokens) == 1:
        return str(tokens[0])
    return ", ".join(
        f"{word} ({len(tokens)} versions)" for word in dict.fromkeys(str(token.unversioned()) for token in tokens)
    )
