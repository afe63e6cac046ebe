"""Import many files, folders and Hub repositories of any supported format into a library, and report on each."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..errors import DiskFull, UserError, printable
from ..prompts import Token
from .concept import Concept, describe_contents
from .importers.contents import DEFAULT_OWNER
from .importers.hub_repositories import fetch_repository, parse_repository
from .importers.read_folders import NotOneConcept, read_source
from .importers.sources import CHECKPOINT, Source, find_concepts, join_parts
from .importers.to_concept import token_of_file
from .library import Library, TokenTaken

__all__ = ["DUPLICATES", "Duplicates", "ImportOutcome", "Source", "find_sources", "import_all", "join_parts"]

Duplicates = Literal["refuse", "versions", "filenames"]
DUPLICATES: tuple[Duplicates, ...] = get_args(Duplicates)

# Suffixes that trainers add to the names of intermediate checkpoints: kohya `-000010` (epochs), `-step00000500`;
# ai-toolkit `_000000500`; diffusers `-steps-500`; cloneofsimo `_e1_s500`; A1111 `-500`; OneTrainer a date and
# `-save-500-5-0`, with nothing before it unless a prefix is set. The file without a suffix is the last.
_CHECKPOINT_NAME = re.compile(
    r"(?P<prefix>.*?)[-_]?\d{4}-\d\d-\d\d[_-]\d\d-\d\d-\d\d-save-(?P<saved>\d{1,9})-\d+-\d+|"
    r"(?P<series>.+?)[-_](?:(?:steps?|epochs?|e\d+_s)[-_]?(?P<worded>\d{1,9})|(?P<padded>\d{6,9})|(?P<plain>\d{1,9}))",
    re.IGNORECASE,
)
_PLAIN_STEP_MULTIPLE = (
    50  # steps: plain numbers that are no multiples of it may name different concepts, cat-1 and cat-2
)


@dataclass(frozen=True)
class ImportOutcome:
    """The result of importing one source. summary: the concept's contents as text; kinds: as `Lora.kinds`."""

    source: str
    token: Token | None = None
    status: str = "refused"  # or "imported", "here already"
    summary: str = ""
    error: UserError | None = None
    kinds: str = ""

    def as_json(self) -> dict[str, object]:
        problem, fix = (self.error.message, self.error.hint) if self.error else (None, None)
        token = str(self.token) if self.token else None
        facts: dict[str, object] = {
            "from": self.source,
            "done": self.status,
            "token": token,
            "problem": problem,
            "fix": fix,
        }
        return facts | ({"lora_kinds": self.kinds} if self.kinds else {})


def find_sources(location: str, steps: bool = False) -> list[Source]:
    """List the sources, one per concept, in a path or a Hub repository. Raises UserError.

    steps: include intermediate checkpoints such as `learned_embeds-steps-500`, not only the last one.
    """
    path = Path(location)
    repository = None if path.exists() else parse_repository(location)
    if repository:
        folder, (owner, name) = fetch_repository(repository), repository.owner_and_name
        if repository.file:
            return [Source(folder / repository.file, (), owner)]
        sources = find_concepts(folder, owner, name, steps)
    else:
        sources = find_concepts(path, steps=steps)
    if not sources:
        raise UserError(
            f"{printable(location, 200)} holds no embedding or LoRA.", "They are .safetensors, .pt or .bin files."
        )
    return sources


def import_all(
    library: Library,
    sources: Sequence[Source],
    as_: Token | None = None,
    replace: bool = False,
    duplicates: Duplicates = "refuse",
) -> Iterator[ImportOutcome]:
    """Import sources one after the other. A refused source does not stop the next; a full disk does.

    duplicates: what to do with another concept under a name that is taken: refuse it, add it as the next version
    (checkpoints of one training in their order), or name it after its file.
    """
    names = _file_names(sources) if duplicates == "filenames" and not as_ else {}
    series = _series(sources) if duplicates == "versions" else {}
    for source in sorted(sources, key=lambda source: series[source].step if source in series else 0):
        token = names.get(source, as_)
        for outcome in _import_one(library, source, token, replace, duplicates, series.get(source)):
            yield outcome
            if isinstance(outcome.error, DiskFull):  # every further source would fail too
                return


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint: its file's name without the step, and the step."""

    series: str
    step: int


def _import_one(
    library: Library,
    source: Source,
    as_: Token | None,
    replace: bool,
    duplicates: Duplicates,
    checkpoint: _Checkpoint | None = None,
) -> Iterator[ImportOutcome]:
    """Import one source, or its files one by one if they are not parts of one concept."""
    try:
        concept = read_source(source, as_)
        if checkpoint and not as_:
            concept = _name_after_series(concept, source, checkpoint)
        try:
            token, existed = _add(library, concept, replace, duplicates == "versions")
        except TokenTaken:
            if as_ or duplicates != "filenames":
                raise
            token, existed = _add_under_file_name(library, concept, source, replace)
    except NotOneConcept:
        for path in source.files:
            yield from _import_one(library, dataclasses.replace(source, path=path, files=()), as_, replace, duplicates)
    except UserError as error:
        yield ImportOutcome(source.label, error=error)
    else:
        kinds = concept.lora.kinds if concept.lora else ""
        yield ImportOutcome(
            source.label, token, "here already" if existed else "imported", _summary(concept), kinds=kinds
        )


def _add(library: Library, concept: Concept, replace: bool, count_up: bool = False) -> tuple[Token, bool]:
    """Add the concept; return its token in the library and whether it was there before. Raises UserError."""
    identities = library.identities(concept.token)
    token = library.add_imported(concept, replace, count_up)
    return token, identities.get(token) == library.find(token).identity and not replace


def _add_under_file_name(library: Library, concept: Concept, source: Source, replace: bool) -> tuple[Token, bool]:
    """Add the concept under its file's name, prefixed with its folder's if that is taken too."""
    token_by_file = _file_name(source, concept.token)
    try:
        return _add(library, dataclasses.replace(concept, token=token_by_file), replace)
    except TokenTaken:
        token = _with_folder(source, token_by_file)
        return _add(library, dataclasses.replace(concept, token=token), replace)


def _name_after_series(concept: Concept, source: Source, snapshot: _Checkpoint) -> Concept:
    """Return the concept under the name that its checkpoints share, if it is named after its file."""
    owner = concept.token.owner or DEFAULT_OWNER
    token = token_of_file(snapshot.series, owner)
    by_file = concept.token == token_of_file(source.path.name, owner)
    return dataclasses.replace(concept, token=token) if by_file and token else concept


def _file_names(sources: Iterable[Source]) -> dict[Source, Token]:
    """Return a token from the file's name for each source whose own token is not unique. This reads files twice."""
    tokens: dict[Source, Token] = {}
    for source in sources:
        try:
            tokens[source] = read_source(source).token
        except UserError:  # the import reports it
            continue
    counts = Counter(token.unversioned() for token in tokens.values())
    file_tokens = {
        source: _file_name(source, token) for source, token in tokens.items() if counts[token.unversioned()] > 1
    }
    # Several folders can have files with the same name.
    counts = Counter(token.unversioned() for token in file_tokens.values())
    return {
        source: _with_folder(source, token) if counts[token.unversioned()] > 1 else token
        for source, token in file_tokens.items()
    }


def _with_folder(source: Source, token: Token) -> Token:
    """Return the token prefixed with the name of its file's folder."""
    folder = source.all_files[0].absolute().parent.name
    return token_of_file(f"{folder}-{token.name}", token.owner or DEFAULT_OWNER) or token


def _file_name(source: Source, token: Token) -> Token:
    """Return the file's name as a token; if the name is generic, the own name followed by the folder or the step."""
    owner = token.owner or DEFAULT_OWNER
    if token_by_file := token_of_file(source.path.name, owner):
        return token_by_file
    match = _CHECKPOINT_NAME.fullmatch(source.path.stem)
    checkpoint = CHECKPOINT.fullmatch(source.path.name)
    suffix = match["worded"] if match and match["worded"] else source.path.absolute().parent.name
    suffix = checkpoint[1] if checkpoint else suffix
    return token_of_file(f"{token.name}-{suffix}", owner) or token


def _series(sources: Sequence[Source]) -> dict[Source, _Checkpoint]:
    """Group files whose names differ only in the step; a file without a step is the last."""
    groups: dict[tuple[Path, str], dict[Source, int]] = {}
    plain_keys: set[tuple[Path, str]] = set()
    for source in sources:
        key, step, is_plain = _step_of(source)
        groups.setdefault(key, {})[source] = step
        if is_plain and step % _PLAIN_STEP_MULTIPLE:
            plain_keys.add(key)
    return {
        source: _Checkpoint(key[1], step)
        for key, steps in groups.items()
        if len(steps) > 1 and key not in plain_keys
        for source, step in steps.items()
    }


def _step_of(source: Source) -> tuple[tuple[Path, str], int, bool]:
    """Return (folder, name without step), the step, and whether the step is a plain number after the name."""
    path = source.all_files[0]
    if checkpoint := CHECKPOINT.fullmatch(source.path.name):
        return (source.path.parent, path.stem if source.files else ""), int(checkpoint[1]), False
    match = _CHECKPOINT_NAME.fullmatch(path.stem)
    if match is None:
        return (path.parent, path.stem), 10**10, False
    step = next(number for number in match.group("saved", "worded", "padded", "plain") if number)
    return (path.parent, match["series"] or match["prefix"] or _run_name(path)), int(step), match["plain"] is not None


def _run_name(path: Path) -> str:
    """Return the name of a run's folder, the parent of OneTrainer's `save/`."""
    folder = path.absolute().parent
    return folder.parent.name if folder.name.lower() == "save" else folder.name


def _summary(concept: Concept) -> str:
    count = max((len(array) for array in concept.vectors.values()), default=0)
    lora = concept.lora
    parts = [concept.card.base, describe_contents(count, lora.rank if lora else 0, lora.kinds if lora else "")]
    parts += ["exact when generating here"] if lora and lora.kinds else []
    if length := concept.card.recipe.get("longest_row"):
        parts += [f"vectors of norm up to {length:g}, where a word's is 0.4: try other strengths"]
    return ", ".join(parts)
