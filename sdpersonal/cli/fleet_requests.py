"""Read what `sdpersonal fleet generate FILE` is to generate: a request a line.

    a photo of <me/duck> on the beach
    {"prompt": "a photo of <me/duck>", "num_images": 1, "seed": 7, "user": "anna", "library": "libraries/anna"}

A line that does not begin with { is a prompt. The fields of an object are those of a request, as recipes and the flags
of `sdpersonal generate` name them; they override the flags of the command. Empty lines are skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from .. import storage
from ..config import GenerateRequest, SettingsBase
from ..errors import UserError, printable
from ..storage.reading import parse_strict_json

if TYPE_CHECKING:
    from ..fleet.generation_run import ListedRequest

MAX_REQUESTS = 100_000
_MAX_BYTES = 256 << 20
_STDIN = Path("-")


class RequestOwner(SettingsBase):
    """Whose a request is. Users take turns."""

    user: Annotated[str, Field(max_length=100)] = ""
    library: Path | None = None


def read_requests(path: Path, defaults: GenerateRequest, library: Path) -> list[ListedRequest]:
    """Read all requests. defaults: what a line does not say; library: where its tokens are looked up unless it says so.

    Raises UserError naming the file and the line.
    """
    from ..fleet.generation_run import ListedRequest

    name = "standard input" if path == _STDIN else printable(str(path), 200)
    common = {field: getattr(defaults, field) for field in GenerateRequest.model_fields}
    requests = []
    for number, line in enumerate(_read_text(path, name).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        with _naming(place):
            entry = GenerateRequest.with_present_names(_parse_line(line.strip()))
            owner = RequestOwner(**{field: entry.pop(field) for field in RequestOwner.model_fields if field in entry})
            if "prompt" not in entry and not defaults.prompt:
                raise UserError("prompt is missing.", 'For example {"prompt": "a photo of <me/duck>"}')
            request = GenerateRequest(**common | entry)
        requests.append(ListedRequest(place, number, owner.user, request, owner.library or library))
        if len(requests) > MAX_REQUESTS:
            raise UserError(f"{name} has more than {MAX_REQUESTS:,} requests.", "Split it into several files.")
    if not requests:
        raise UserError(f"{name} holds no request.", "Write a prompt, or a JSON object, on each line.")
    return requests


def _read_text(path: Path, name: str) -> str:
    if path == _STDIN:
        data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UserError(f"{name} is larger than {_MAX_BYTES >> 20} MB.", "Split it.")
    else:
        data = storage.read_bytes(path, _MAX_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text.", "Save it as UTF-8.") from None


def _parse_line(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {"prompt": line}
    try:
        entry = parse_strict_json(line)
    except ValueError as error:
        raise UserError(
            f"it begins with {{ but is no JSON object: {printable(str(error), 200)}.",
            'A prompt that begins with { is written {"prompt": "{red|blue} ball"}.',
        ) from None
    return entry if isinstance(entry, dict) else {}


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Say in a UserError which line it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error.message}", error.hint) from None
