"""Files of other programs, one module each. A format is known by its content, never by its name."""

from __future__ import annotations

import dataclasses

from ...errors import PersonalError
from ...prompts import Token, show
from ...storage.file_types import SAFETENSORS, recognise
from .. import concept as native
from ..concept import Concept
from ..strict_safetensors import MAX_HEADER, MAX_STRANGERS_HEADER, check, check_head
from ..thumbnail import remade
from . import a1111, clip_pairs, cloneofsimo, diffusers, diffusers_lora, embedding_images, lora_file, onetrainer
from .contents import Content, names_in, opened
from .origin import with_origin
from .unsupported import refuse

READ = ("safetensors", "image", "zip", "pickle")  # groups of `filetypes`; what is in them may still be something else
_EMBEDDINGS = (a1111, onetrainer, clip_pairs, diffusers)  # diffusers' last: any one name would do for it


def read_any(data: bytes, name: str, token: Token | None = None) -> Concept:
    """The concept in a stranger's file called `name`, under its own token or the one given. Raises PersonalError."""
    if is_ours(data, name):
        return read_ours(data, name, token)
    return read_content(open_any(data, name), token)


def read_ours(data: bytes, name: str, token: Token | None = None) -> Concept:
    """The concept in a file of ours that comes from a stranger. Raises PersonalError."""
    concept = onetrainer.restored(native.read(data, name), check(data, name).metadata)
    thumbnail = remade(concept.thumbnail) if concept.thumbnail else None
    return dataclasses.replace(concept, token=token or concept.token, thumbnail=thumbnail)


def open_any(data: bytes, name: str) -> Content:
    """What a foreign file holds. Raises PersonalError, naming what it is where no concept can hold it."""
    kind = recognise(data)
    if kind.group == "image":
        return embedding_images.opened(data, name)
    if kind.group not in READ:
        raise kind.refusal(name)
    if kind is SAFETENSORS:
        refuse(names_in(data), name)  # first: a whole model has more in it than may be read
    content = opened(data, name)
    refuse(content.shapes, name)
    return content


def read_content(content: Content, token: Token | None = None) -> Concept:
    """The concept in what a foreign file holds, or an export of ours in its layout. Raises PersonalError."""
    return with_origin(lambda token: _read_content(content, token), content.facts, content.name, token)


def read_pair(one: Content, two: Content, token: Token | None = None) -> Concept:
    """The concept in the two files of an SDXL embedding, likewise. Raises PersonalError."""
    return with_origin(lambda token: diffusers.read_pair(one, two, token), one.facts, one.name, token)


def _read_content(content: Content, token: Token | None) -> Concept:
    if cloneofsimo.fits(content):
        return cloneofsimo.read(content, token)
    if lora_file.fits(content):
        return lora_file.read(content, token, diffusers_lora.adapters(content))
    for each in _EMBEDDINGS:
        if each.fits(content):
            return each.read(content, token)
    raise unknown(content.name)


def is_ours(head: bytes, name: str, size: int | None = None) -> bool:
    """Whether a file was written as a concept by this program. Raises PersonalError where it is damaged.

    head: the file, or its first 1 MB and more, and then its size.
    """
    if recognise(head, size) is not SAFETENSORS or b"sdpersonal.card" not in head[: 8 + MAX_HEADER]:
        return False
    return "sdpersonal.card" in check_head(head, size or len(head), name, MAX_STRANGERS_HEADER).metadata


def unknown(name: str) -> PersonalError:
    return PersonalError(
        f"{show(name)} is not of a format that I read.",
        "I read embeddings and LoRAs for Stable Diffusion 1.x, 2.x and XL; docs/formats.md lists whose.",
    )
