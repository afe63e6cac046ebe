"""Run the commands for a library's contents: list, show, rename, remove, restore, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ...concepts.library import Entry, Library
from ...concepts.trash import Trash
from ...config import SettingsBase, TokenText
from ...errors import printable
from ...prompts import Token
from ..terminal import print_json, report_done, say


class ListArgs(SettingsBase):
    """List the concepts of a library."""

    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of text."""
    library: Path = Path("concepts")
    """Folder of your concepts."""


class ShowArgs(ListArgs):
    """Show the card of a concept."""

    token: Annotated[TokenText, tyro.conf.Positional, tyro.conf.arg(metavar="TOKEN")]
    """For example '<me/duck>'."""


class RenameArgs(ListArgs):
    """Give a concept another token, also in the prompts on its card."""

    old: Annotated[TokenText, tyro.conf.Positional, tyro.conf.arg(metavar="OLD")]
    """Token of the concept, for example '<me/duck>'; with a version, only that version."""
    new: Annotated[TokenText, tyro.conf.Positional, tyro.conf.arg(metavar="NEW")]
    """New token."""


class RemoveArgs(ListArgs):
    """Delete a concept. For 30 days it can be restored: concepts restore."""

    token: Annotated[TokenText, tyro.conf.Positional, tyro.conf.arg(metavar="TOKEN")]
    """Token of the concept, for example '<me/duck-v2>'."""
    all_versions: bool = False
    """Delete all its versions."""
    for_good: bool = False
    """Delete permanently."""


class RestoreArgs(ListArgs):
    """Restore a deleted concept; without a token, list what can be restored."""

    token: Annotated[TokenText | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TOKEN]")] = None
    """Token, for example '<me/duck>': restores what was last deleted under it, with all that was deleted together."""


class VerifyArgs(ListArgs):
    """Read every file of a library in full and list the damaged ones."""


def list_concepts(settings: ListArgs) -> int:
    entries = Library(settings.library).entries()
    if settings.json_:
        print_json([entry.as_json() for entry in entries])
    elif entries:
        width = max(len(str(entry.token)) for entry in entries)
        for entry in entries:
            say(f"{entry.token!s:{width}}  {_entry_line(entry)}")
    else:
        say(f"No concepts in {settings.library} yet. Make one: sdpersonal train dreambooth --help")
    return 0


def show_concept(settings: ShowArgs) -> int:
    entry = Library(settings.library).find(Token.parse(settings.token))
    facts = entry.as_json()
    if settings.json_:
        print_json(facts)
    else:
        for key, value in facts.items():
            if value not in (None, "", [], {}):
                say(f"{key:14} {_format_value(value)}")
    return 0


def rename_concept(settings: RenameArgs) -> int:
    return report_done(
        settings.json_,
        Library(settings.library).rename(Token.parse(settings.old), Token.parse(settings.new)),
        "renamed",
    )


def remove_concept(settings: RemoveArgs) -> int:
    library, token = Library(settings.library), Token.parse(settings.token)
    if settings.for_good:
        gone = library.remove(token, settings.all_versions)
    else:
        gone = Trash(library).delete(token, settings.all_versions).tokens
    return report_done(settings.json_, gone, "removed")


def restore_concept(settings: RestoreArgs) -> int:
    trash = Trash(Library(settings.library))
    if settings.token:
        return report_done(
            settings.json_, trash.restore(trash.find_deletion(Token.parse(settings.token)).name), "restored"
        )
    deleted = [
        (f"{removed.deleted_at:%Y-%m-%dT%H:%M:%SZ}", str(token))
        for removed in trash.deletions()
        for token in removed.tokens
    ]
    if settings.json_:
        print_json([{"token": token, "deleted": when} for when, token in deleted])
    else:
        say("\n".join(f"{when}  {token}" for when, token in deleted) or "Nothing was deleted.")
    return 0


def verify_concepts(settings: VerifyArgs) -> int:
    library = Library(settings.library)
    problems: list[dict[str, str | None]] = [
        {"token": str(entry.token), "problem": problem} for entry, problem in library.verify()
    ]
    problems += [
        {"token": None, "problem": f"{printable(str(path))} is not reachable by any token (wrong file name or folder)"}
        for path in library.misplaced_files()
    ]
    if settings.json_:
        print_json(problems)
    else:
        for problem in problems:
            say(f"{problem['token'] or '-'}  {problem['problem']}")
        say(f"{len(problems)} files are damaged." if problems else "No file is damaged.")
    return 1 if problems else 0


def _entry_line(entry: Entry) -> str:
    if entry.damaged or entry.card is None:
        return f"damaged: {entry.damaged}"
    kind = f"{entry.card.kind:7} {entry.card.base:5}"
    return f"{kind} {entry.contents:26} {entry.size / 1e6:6.2f} MB  {entry.card.title}".rstrip()


def _format_value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


COMMANDS = {
    "concepts list": (list_concepts, ListArgs),
    "concepts show": (show_concept, ShowArgs),
    "concepts rename": (rename_concept, RenameArgs),
    "concepts remove": (remove_concept, RemoveArgs),
    "concepts restore": (restore_concept, RestoreArgs),
    "concepts verify": (verify_concepts, VerifyArgs),
}
