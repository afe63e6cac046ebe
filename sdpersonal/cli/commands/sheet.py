"""Run the command `sheet`: generate an X/Y/Z grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from ...concepts.library import Library
from ...playground.xyz_grid import XyzGridRequest
from ...prompts import MAX_PROMPT
from ..terminal import print_note, progress_bar
from .generate import GenerationArgs, load_model, open_outputs, print_paths

if TYPE_CHECKING:
    from ...generation.prompt_resolution import ConceptSource


class SheetArgs(GenerationArgs, XyzGridRequest):
    """Generate an X/Y/Z grid: one prompt, with one thing changed along the columns, another along the rows."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT), tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """Prompt with concept tokens, and {} where an axis puts words: 'a photo of <me/duck> {}'."""


def sheet_command(settings: SheetArgs) -> int:
    from ... import storage
    from ...generation import Generator
    from ...generation.request_checks import check_requests
    from ...models.loading import kind_of
    from ...playground.xyz_grid import CheckpointConcepts, generate_grid
    from ...training.control import StopSignals

    concepts: ConceptSource = Library(settings.library)
    storage.check_folder(settings.out)
    checkpoints = [run.token_at(step) for run in settings.runs for step in run.steps]
    requests = list({cell.request: None for cell in settings.cells})
    print_note(check_requests(requests, concepts, settings.wildcards, kind_of(settings.base), checkpoints))
    base = load_model(settings, settings.base)
    for run in settings.runs:
        concepts = CheckpointConcepts(concepts, run, base)
    generator = Generator(base, concepts, settings.wildcards)
    with open_outputs(settings) as outputs, progress_bar("generating") as advance, StopSignals() as stop:
        saved = generate_grid(settings, generator, outputs, settings.private, advance, lambda: bool(stop.signal_number))
    print_paths([*saved.grids, saved.page], saved.hidden)
    return 0


COMMANDS = {"sheet": (sheet_command, SheetArgs)}
