"""Run the command `endless`: generate images of a prompt with alternatives until Ctrl-C."""

from __future__ import annotations

from typing import Annotated, ClassVar

import tyro
from pydantic import Field

from ...concepts.library import Library
from ...config import GenerateRequest, PromptText, WholeNumber
from ..terminal import print_note, progress_bar, say, say_scheduler
from .generate import GenerationArgs, load_model, open_outputs, print_paths, request_of


class EndlessArgs(GenerationArgs, GenerateRequest):
    """Generate from a prompt with alternatives until Ctrl-C, no image twice. The same command continues later."""

    prompt: Annotated[PromptText, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """Prompt with alternatives: 'a {samurai|cowboy} in the style of <me/ink>'."""
    num_images: ClassVar[int] = 1  # type: ignore[misc]  # no field here: --limit is the number of images
    all_combinations: ClassVar[bool] = False  # type: ignore[misc]  # no field here: they all come in time
    limit: Annotated[int, WholeNumber, Field(ge=1, le=1_000_000)] | None = None
    """Stop after this many images. Default: on Ctrl-C."""


def endless_command(settings: EndlessArgs) -> int:
    from ... import storage
    from ...generation import Generator
    from ...generation.request_checks import check_template
    from ...models.loading import kind_of
    from ...playground.endless_series import EndlessSeries, generate_endless
    from ...training.control import StopSignals

    request = request_of(settings)
    say_scheduler(request)
    series, library = EndlessSeries(request, settings.wildcards), Library(settings.library)
    storage.check_folder(settings.out)
    print_note(check_template(request, library, settings.wildcards, kind_of(settings.base)))
    generator = Generator(load_model(settings, settings.base), library, settings.wildcards)
    say(f"{series.combinations:,} combinations of the alternatives, with a new seed each time. Ctrl-C ends it.")
    with open_outputs(settings) as outputs, progress_bar("generating") as advance, StopSignals(what="image") as stop:
        for path, hidden in generate_endless(
            series, generator, outputs, settings.limit, settings.private, advance, lambda: bool(stop.signal_number)
        ):
            print_paths([path], [hidden])
    return 0


COMMANDS = {"endless": (endless_command, EndlessArgs)}
