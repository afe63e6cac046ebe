"""Import files of other programs, one module each. A format is recognised by its content, never by its name."""

from __future__ import annotations

import dataclasses

from ...errors import UserError, printable
from ...prompts import Token
from ...storage.file_types import SAFETENSORS, recognise
from ..concept import Concept
from ..concept_file import concept_from_bytes
from ..strict_safetensors import MAX_FOREIGN_HEADER, MAX_HEADER, parse_head_layout, parse_layout
from ..thumbnail import reencode_thumbnail
from . import cloneofsimo, embedding_images, embeddings, lora_file, peft
from .contents import FileContents, read_contents, tensor_names
from .origin import restore_ranks, with_origin
from .unsupported import refuse_unsupported

READABLE_GROUPS = (
    "safetensors",
    "image",
    "zip",
    "pickle",
)  # groups of `file_types`; the content may still be unsupported


def read_any(data: bytes, name: str, token: Token | None = None) -> Concept:
    """Read the concept in a foreign file called `name`, under its own token or the one given. Raises UserError."""
    if is_native(data, name):
        return read_native(data, name, token)
    return read_content(open_foreign(data, name), token)


def read_native(data: bytes, name: str, token: Token | None = None) -> Concept:
    """Read the concept in a file of our own format, which may come from anybody. Raises UserError."""
    concept = restore_ranks(concept_from_bytes(data, name), parse_layout(data, name).metadata)
    thumbnail = reencode_thumbnail(concept.thumbnail) if concept.thumbnail else None
    return dataclasses.replace(concept, token=token or concept.token, thumbnail=thumbnail)


def open_foreign(data: bytes, name: str) -> FileContents:
    """Read what a foreign file holds. Raises UserError, saying what it is where no concept can hold it."""
    kind = recognise(data)
    if kind.group == "image":
        return embedding_images.read_image_contents(data, name)
    if kind.group not in READABLE_GROUPS:
        raise kind.refusal(name)
    if kind is SAFETENSORS:
        refuse_unsupported(tensor_names(data), name)  # before reading: a whole model is larger than may be read
        return read_contents(data, name)
    content = read_contents(data, name)
    refuse_unsupported(content.shapes, name)
    return content


def read_content(content: FileContents, token: Token | None = None) -> Concept:
    """Convert a foreign file's contents, or those of our export in its layout, to a concept. Raises UserError."""
    return with_origin(lambda token: _read_content(content, token), content.metadata, content.name, token)


def read_pair(first: FileContents, second: FileContents, token: Token | None = None) -> Concept:
    """Convert diffusers' two files of an SDXL embedding, likewise. Raises UserError."""
    return with_origin(
        lambda token: embeddings.read_diffusers_pair(first, second, token), first.metadata, first.name, token
    )


def _read_content(content: FileContents, token: Token | None) -> Concept:
    if cloneofsimo.fits(content):
        return cloneofsimo.read(content, token)
    if lora_file.fits(content):
        return lora_file.read(content, token, peft.peft_configs(content))
    if embeddings.fits(content):
        return embeddings.read(content, token)
    raise unknown_format_error(content.name)


def is_native(head: bytes, name: str, size: int | None = None) -> bool:
    """Return whether this program wrote the file as a concept. Raises UserError where it is damaged.

    head: the file, or at least its first 1 MB; then `size` is needed.
    """
    if recognise(head, size) is not SAFETENSORS or b"sdpersonal.card" not in head[: 8 + MAX_HEADER]:
        return False
    return "sdpersonal.card" in parse_head_layout(head, size or len(head), name, MAX_FOREIGN_HEADER).metadata


def unknown_format_error(name: str) -> UserError:
    return UserError(
        f"{printable(name)} is in no supported format.",
        "Use an embedding or a LoRA for Stable Diffusion 1.x, 2.x or XL; docs/formats.md lists the programs.",
    )
