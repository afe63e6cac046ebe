"""Read what `sdpersonal fleet train LIST` is to train: a folder of photo folders, or a list in JSON.

    people/anna/*.jpg        is <me/anna>, or another owner with --owner
    people/anna/duck/*.jpg   is <anna/duck>: a folder without photos is an owner

A JSON list is that of `--concepts-list`. Flags that are not the fleet's own are the trainer's, for every concept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..config import TrainingSettings
from ..errors import UserError, printable
from ..photos.loading import is_sidecar
from ..prompts import Token, to_token_word
from . import batch_training
from .diffusers_compat.argv import ArgvItem, join_argv, split_argv

MAX_CONCEPTS = 100_000
_MAX_BYTES = 64 << 20
_FLEET_FLAGS = {"storage", "address", "workers", "cpus_per_worker", "gpus_per_worker", "memory_per_worker", "owner"}
_SHARED_FLAGS = {"library", "method"}  # the fleet's and the trainer's
_OWN_FOLDERS = {"run": "The fleet keeps its runs in --storage."}  # flags that are refused, with the reason


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words after `fleet train` into the fleet's and the trainer's. Raises UserError without a LIST."""
    if not argv or argv[0].startswith("-"):
        raise UserError("LIST is missing.", "It comes first: sdpersonal fleet train LIST --steps 200 ...")
    fleet, training = [argv[0]], list[ArgvItem]()
    for item in split_argv(argv[1:]):
        if item.name in _OWN_FOLDERS:
            raise UserError(f"--{item.name} is not for a fleet.", _OWN_FOLDERS[item.name])
        item = ArgvItem("library", ("--library", *item.values)) if item.name == "out" else item
        if item.name in _FLEET_FLAGS | _SHARED_FLAGS:
            fleet += item.words
        if item.name not in _FLEET_FLAGS and item.values != ("textual-inversion",):
            training.append(item)
    return fleet, join_argv(training)


def read_list(
    path: Path, owner: str, argv: Sequence[str], parse: Callable[[list[str]], TrainingSettings]
) -> tuple[TrainingSettings, ...]:
    """Read every training of a list or folder. argv, parse: as for `batch_training.read_batch`. Raises UserError."""
    if path.is_dir():
        entries: list[dict[str, object]] = [
            {"token": token, "photos": str(photos)} for token, photos in _photo_folders(path, owner)
        ]
        if not entries:
            raise UserError(
                f"{printable(str(path))} holds no folder of photos.", "Put a folder for each concept there."
            )
    else:
        entries = batch_training.read_entries(path, _MAX_BYTES, MAX_CONCEPTS)
    return batch_training.read_batch(path, argv, parse, entries).concepts


def _photo_folders(folder: Path, owner: str) -> Iterator[tuple[str, Path]]:
    """Yield the token and the folder of each concept."""
    for path in _folders(folder):
        if _has_photos(path):
            yield f"<{owner}/{_to_name(path)}>", path
        else:
            for below in filter(_has_photos, _folders(path)):
                yield f"<{_to_name(path)}/{_to_name(below)}>", below


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and child.name[0] != ".")


def _has_photos(path: Path) -> bool:
    return any(child.is_file() and not is_sidecar(child.name) for child in path.iterdir())


def _to_name(path: Path) -> str:
    """Return a folder's name as a token spells it: "Anna Müller" is anna-muller."""
    plain = unicodedata.normalize("NFKD", path.name).encode("ascii", "ignore").decode()
    try:
        return Token.parse(to_token_word(plain, max_length=None)).name
    except UserError:
        raise UserError(
            f"The folder {printable(str(path))} cannot name a concept.", "Rename it; a-z, 0-9 and - are allowed."
        ) from None
