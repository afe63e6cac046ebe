"""`concepts import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from ..errors import PersonalError
from ..library import Library
from ..prompts import Token
from .concepts import Listing
from .output import report


class Importing(Listing):
    """Add concept files to a library."""

    files: tyro.conf.Positional[Annotated[tuple[Path, ...], Field(min_length=1)]]
    """Our own files, or diffusers' learned_embeds.safetensors and .bin."""
    as_: Annotated[str | None, tyro.conf.arg(name="as")] = None
    """The token it gets, for example '<me/duck>'. Default: the one in the file."""
    replace: bool = False
    """Take the place of the concept that has this token."""


def import_concepts(settings: Importing) -> int:
    if settings.as_ and len(settings.files) > 1:
        raise PersonalError("--as names one concept; several files are given.", "Import them one by one.")
    as_ = Token.parse(settings.as_) if settings.as_ else None
    return report(
        settings.json_,
        [Library(settings.library).import_(path, as_, settings.replace) for path in settings.files],
        "imported",
    )


COMMANDS = {
    "concepts import": (import_concepts, Importing),
}
