"""Files of other programs, one module each. A format is known by its content, never by its name."""

from __future__ import annotations

import dataclasses

from .. import concept as native
from ..concept import Concept
from ..errors import PersonalError
from ..prompts import Token, show
from ..tensorfile import check
from ..thumbnail import remade
from . import diffusers, pickles

_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")


def read_any(data: bytes, name: str, token: Token | None = None) -> Concept:
    """The concept in a stranger's file called `name`, under its own token or the one given. Raises PersonalError."""
    if pickles.is_pickle(data):
        return diffusers.read(data, name, token)
    if data.startswith(_PICTURES):
        raise PersonalError(f"{show(name)} is a picture, not a concept.", "Pictures go into a folder to train on.")
    metadata = check(data, name).metadata
    if "sdpersonal.card" not in metadata:
        return diffusers.read(data, name, token)
    concept = native.read(data, name)
    thumbnail = remade(concept.thumbnail) if concept.thumbnail else None
    return dataclasses.replace(concept, token=token or concept.token, thumbnail=thumbnail)
