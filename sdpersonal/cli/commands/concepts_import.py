"""Run `concepts import`: read files, folders and Hub repositories, many at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from ...concepts.importing import Duplicates, ImportOutcome, Source, find_sources, import_all, join_parts
from ...concepts.library import Library
from ...config import TokenText
from ...errors import UserError, printable
from ...prompts import Token
from ..terminal import print_json, progress_bar, say
from .concepts_list import ListArgs

_PIPED_WIDTH = 250  # columns when the output is no terminal, so that lines stay whole for grep


class ImportArgs(ListArgs):
    """Import concept files of any common tool into a library."""

    files: Annotated[tuple[str, ...], Field(min_length=1), tyro.conf.Positional, tyro.conf.arg(metavar="FILES")]
    """Files, folders of files, or Hub repositories (sd-concepts-library/cat-toy): embeddings, LoRAs and LyCORIS
    (LoHa, LoKr, DoRA, OFT, ...) of diffusers, PEFT, A1111, kohya, OneTrainer and others, and our own. Files that are
    parts of one concept are joined."""
    as_: Annotated[TokenText | None, tyro.conf.arg(name="as")] = None
    """Token for the concept, for example '<me/duck>'. Default: the one in the file."""
    replace: bool = False
    """Replace the concept that has this token."""
    duplicates: Duplicates = "refuse"
    """How to treat several files of one name, or a name that is taken: `refuse` all but the first; `versions`:
    each is the next version, snapshots of one training (duck-000010, learned_embeds-steps-500) in their order;
    `filenames`: each is named by its file's name."""


def import_concepts(settings: ImportArgs) -> int:
    as_ = Token.parse(settings.as_) if settings.as_ else None
    outcomes: list[ImportOutcome] = []
    sources: list[Source] = []
    for name in settings.files:
        try:
            sources += find_sources(name, steps=settings.duplicates != "refuse")
        except UserError as error:
            outcomes.append(ImportOutcome(name, error=error))
    sources = join_parts(sources)
    if as_ and len(sources) > 1 and settings.duplicates != "versions":
        raise _one_name_error()
    library = Library(settings.library)
    with progress_bar("importing") as advance:
        for number, outcome in enumerate(import_all(library, sources, as_, settings.replace, settings.duplicates), 1):
            outcomes.append(outcome)
            advance(number, len(sources))
    return _report_outcomes(settings, outcomes)


def _one_name_error() -> UserError:
    return UserError("--as names one concept; several files are given.", "Import them one by one.")


def _report_outcomes(settings: ImportArgs, outcomes: Sequence[ImportOutcome]) -> int:
    """Print what happened to each file. Returns the exit code of the worst."""
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if settings.json_:
        tokens = [str(outcome.token) for outcome in outcomes if outcome.token]
        print_json({"imported": tokens, "files": [outcome.as_json() for outcome in outcomes]})
    elif len(outcomes) == 1:
        if failed:
            raise failed[0]
        what = f"  {outcomes[0].summary}" if outcomes[0].kinds else ""
        say(f"{outcomes[0].status}: {outcomes[0].token}{what}")
    else:
        _print_table(outcomes)
        say(f"{len(outcomes) - len(failed)} of {len(outcomes)} are in {settings.library}.")
    return max((error.exit_code for error in failed), default=0)


def _print_table(outcomes: Sequence[ImportOutcome]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("file", "", "token, or what is wrong", box=None, pad_edge=False, header_style="bold")
    for outcome in outcomes:
        result = f"{outcome.token}  {outcome.summary}" if outcome.token else str(outcome.error)
        style = {"refused": "red", "imported": "green"}.get(outcome.status, "")
        # Text, not str: in a string rich would read [brackets] of an untrusted name as markup.
        near = "/".join(Path(outcome.source).parts[-2:])
        table.add_row(Text(printable(near), overflow="fold"), Text(outcome.status, style), Text(result))
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


COMMANDS = {
    "concepts import": (import_concepts, ImportArgs),
}
