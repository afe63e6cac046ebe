"""`concepts import`: files, folders and repositories of the Hub, many at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from ..concept import holds
from ..errors import NoRoom, PersonalError
from ..formats.content import OWNER
from ..formats.folders import concepts_in, read_path
from ..formats.repositories import fetched, split
from ..library import Library
from ..prompts import Token, show
from .concepts import Listing
from .output import bar, report, say, say_json

_PIPED = 250  # columns where nobody looks: the lines stay whole for grep


class Importing(Listing):
    """Add concept files of any common tool to a library."""

    files: tyro.conf.Positional[Annotated[tuple[str, ...], Field(min_length=1)]]
    """Files, folders of them, or repositories of the Hub (sd-concepts-library/cat-toy): embeddings and LoRAs of
    diffusers, PEFT, A1111, kohya, OneTrainer and others, and our own."""
    as_: Annotated[str | None, tyro.conf.arg(name="as")] = None
    """The token it gets, for example '<me/duck>'. Default: the one in the file."""
    replace: bool = False
    """Take the place of the concept that has this token."""


@dataclass(frozen=True)
class _Source:
    """One thing to read; owner, place: what the repository it came from calls itself."""

    path: Path
    owner: str = OWNER
    place: str = ""


@dataclass(frozen=True)
class _Outcome:
    """What happened to one source."""

    source: str
    token: Token | None = None
    done: str = "refused"  # or "imported", "here already"
    what: str = ""
    error: PersonalError | None = None

    def as_json(self) -> dict[str, object]:
        problem, fix = (self.error.problem, self.error.fix) if self.error else (None, None)
        token = str(self.token) if self.token else None
        return {"from": self.source, "done": self.done, "token": token, "problem": problem, "fix": fix}


def import_concepts(settings: Importing) -> int:
    as_ = Token.parse(settings.as_) if settings.as_ else None
    if as_ and len(settings.files) > 1:
        raise _one_name()
    outcomes: list[_Outcome] = []
    sources: list[_Source] = []
    for asked in settings.files:
        try:
            sources += _sources(asked)
        except PersonalError as error:
            outcomes.append(_Outcome(asked, error=error))
    if as_ and len(sources) > 1:
        raise _one_name()
    library = Library(settings.library)
    with bar("importing") as advance:
        for number, source in enumerate(sources):
            outcomes.append(_import(library, source, as_, settings.replace))
            advance(number + 1, len(sources))
            if isinstance(outcomes[-1].error, NoRoom):  # nothing after it would fare better
                break
    return _told(settings, outcomes)


def _one_name() -> PersonalError:
    return PersonalError("--as names one concept; several files are given.", "Import them one by one.")


def _sources(asked: str) -> Iterator[_Source]:
    """What one argument stands for. Raises PersonalError."""
    path = Path(asked)
    repository = None if path.exists() else split(asked)
    if not repository:
        return (_Source(each) for each in concepts_in(path))
    folder, (owner, place) = fetched(repository), repository.words
    found = [folder / repository.file] if repository.file else list(concepts_in(folder))
    return (_Source(each, owner, place if each == folder else "") for each in found)


def _import(library: Library, source: _Source, as_: Token | None, replace: bool) -> _Outcome:
    try:
        concept = read_path(source.path, as_, source.owner, source.place)
        known = library.versions(concept.token)
        token = library.keep(concept, replace)
    except PersonalError as error:
        return _Outcome(str(source.path), error=error)
    rows = max((len(rows) for rows in concept.vectors.values()), default=0)
    parts = [concept.card.base, holds(rows, concept.lora.rank if concept.lora else 0)]
    if length := concept.card.recipe.get("longest_row"):
        parts += [f"rows up to {length:g} long, where a word's is 0.4: try other strengths"]
    done = "here already" if token in known and not replace else "imported"
    return _Outcome(str(source.path), token, done, ", ".join(parts))


def _told(settings: Importing, outcomes: Sequence[_Outcome]) -> int:
    """Print what happened to each; the exit code is that of the worst."""
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if settings.json_:
        tokens = [str(outcome.token) for outcome in outcomes if outcome.token]
        say_json({"imported": tokens, "files": [outcome.as_json() for outcome in outcomes]})
    elif len(outcomes) == 1:
        if failed:
            raise failed[0]
        return report(False, [outcomes[0].token], outcomes[0].done)
    else:
        _table(outcomes)
        say(f"{len(outcomes) - len(failed)} of {len(outcomes)} are in {settings.library}.")
    return max((error.exit_code for error in failed), default=0)


def _table(outcomes: Sequence[_Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("file", "", "token, or what is wrong", box=None, pad_edge=False, header_style="bold")
    for outcome in outcomes:
        told = f"{outcome.token}  {outcome.what}" if outcome.token else str(outcome.error)
        style = {"refused": "red", "imported": "green"}.get(outcome.done, "")
        # Text, not str: in a string rich would read [brackets] of a stranger's name as markup.
        near = "/".join(Path(outcome.source).parts[-2:])
        table.add_row(Text(show(near), overflow="fold"), Text(outcome.done, style), Text(told))
    Console(width=None if sys.stdout.isatty() else _PIPED).print(table)


COMMANDS = {
    "concepts import": (import_concepts, Importing),
}
