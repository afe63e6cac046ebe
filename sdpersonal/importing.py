"""Files, folders and repositories of any format we read, many at once, into a library; and what happened to each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .concept import Concept, holds
from .errors import NoRoom, PersonalError
from .formats.content import OWNER
from .formats.folders import concepts_in, read_path
from .formats.repositories import fetched, split
from .library import Library
from .prompts import Token


@dataclass(frozen=True)
class Source:
    """One thing to read; owner, place: what the repository it came from calls itself."""

    path: Path
    owner: str = OWNER
    place: str = ""


@dataclass(frozen=True)
class Outcome:
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


def sources(asked: str) -> Iterator[Source]:
    """What a path or a repository's name stands for, one concept each. Raises PersonalError."""
    path = Path(asked)
    repository = None if path.exists() else split(asked)
    if not repository:
        return (Source(each) for each in concepts_in(path))
    folder, (owner, place) = fetched(repository), repository.words
    found = [folder / repository.file] if repository.file else list(concepts_in(folder))
    return (Source(each, owner, place if each == folder else "") for each in found)


def bring_in(
    library: Library, found: Iterable[Source], as_: Token | None = None, replace: bool = False
) -> Iterator[Outcome]:
    """Import one after the other; one that is refused does not stop the next, a full disk does."""
    for source in found:
        outcome = _import(library, source, as_, replace)
        yield outcome
        if isinstance(outcome.error, NoRoom):  # nothing after it would fare better
            return


def _import(library: Library, source: Source, as_: Token | None, replace: bool) -> Outcome:
    try:
        concept = read_path(source.path, as_, source.owner, source.place)
        known = library.versions(concept.token)
        token = library.keep(concept, replace)
    except PersonalError as error:
        return Outcome(str(source.path), error=error)
    done = "here already" if token in known and not replace else "imported"
    return Outcome(str(source.path), token, done, _summary(concept))


def _summary(concept: Concept) -> str:
    rows = max((len(rows) for rows in concept.vectors.values()), default=0)
    lora = concept.lora
    parts = [concept.card.base, holds(rows, lora.rank if lora else 0, lora.kinds if lora else "")]
    if length := concept.card.recipe.get("longest_row"):
        parts += [f"rows up to {length:g} long, where a word's is 0.4: try other strengths"]
    return ", ".join(parts)
