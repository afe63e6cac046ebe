"""Write and read what the driver of a generation and its workers leave for each other in the store.

    chunks/SESSION-7.json       the tasks of a chunk, by the ids of their images
    images/ID-SHA256.png        an image, until it is in the folder of images
    saved/ID.json               the file that it became there

The ID of an image says all that it depends on, so that the same image asked for twice is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .image_task import ImageTask
from .jobs import Failure
from .store import Store

IMAGES, SAVED = "images", "saved"
_CHUNK_ID = re.compile(r"[0-9a-f]{16}-[0-9]{1,9}")
_IMAGE_ID = re.compile(r"[0-9a-f]{32}")
_IMAGE_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{64})\.png")


@dataclass(frozen=True)
class ChunkEnd:
    """How a chunk ended on a worker. images: sha256 of the file of each image that it made; errors: of those that
    cannot be made. What is in neither was not made, because the worker was stopped or for the reason in `problem`,
    which says nothing about the images."""

    node: str
    images: dict[str, str] = field(default_factory=dict)
    errors: dict[str, Failure] = field(default_factory=dict)
    problem: str = ""


def chunk_key(chunk_id: str) -> str:
    """Return the key of a chunk. Raises UserError for a text that is no ID of one."""
    if not _CHUNK_ID.fullmatch(chunk_id):
        raise UserError("That is no chunk of this fleet.")
    return f"chunks/{chunk_id}.json"


def write_chunk(store: Store, chunk_id: str, tasks: Mapping[str, ImageTask]) -> None:
    store.write_json(chunk_key(chunk_id), {"tasks": {image_id: task.as_json() for image_id, task in tasks.items()}})


def read_chunk(content: Mapping[str, Any]) -> dict[str, ImageTask]:
    """Return the tasks of a chunk's file by the IDs of their images. Raises UserError if it is damaged."""
    tasks = content.get("tasks")
    if not isinstance(tasks, dict) or not all(map(_IMAGE_ID.fullmatch, tasks)):
        raise UserError("A chunk of images is damaged in the storage, or not there.", "Give the command again.")
    return {image_id: ImageTask.from_json(task) for image_id, task in tasks.items()}


def image_key(image_id: str, sha256: str) -> str:
    return f"{IMAGES}/{image_id}-{sha256}.png"


def stored_images(store: Store, wanted: Iterable[str]) -> dict[str, list[str]]:
    """Return the sha256 of each image's files in the store, for those of these IDs that have any there."""
    wanted, files = set(wanted), dict[str, list[str]]()
    for match in filter(None, map(_IMAGE_NAME.fullmatch, store.names(IMAGES))):
        if match[1] in wanted:
            files.setdefault(match[1], []).append(match[2])
    return files


def saved_key(image_id: str) -> str:
    return f"{SAVED}/{image_id}.json"


def saved_ids(store: Store) -> set[str]:
    """Return the IDs of the images that are noted as saved."""
    return {name.removesuffix(".json") for name in store.names(SAVED)}
