"""diffusers' textual inversions: `learned_embeds.safetensors` and the older `.bin`, one tensor under the token's name.

Source: diffusers `examples/textual_inversion/textual_inversion.py` (`save_progress`), `loaders/textual_inversion.py`.
"""

from __future__ import annotations

import numpy as np

from ..card import Card
from ..concept import WIDTHS, Concept
from ..errors import PersonalError
from ..prompts import Token, show
from ..tensorfile import array, check, pack
from . import pickles

_BASES = {widths["clip_l"]: base for base, widths in WIDTHS.items() if len(widths) == 1}
_TINY = 512  # no text encoder of Stable Diffusion is this narrow
_OWNER = "imported"  # these files name no owner
_NOT_TOKENS = {"emb_params", "emp_params", "clip_l", "clip_g", "t5"}  # what other programs call their tensors


def read(data: bytes, name: str, token: Token | None = None) -> Concept:
    """The concept in either kind of file: vectors (dim,) or (n, dim) under one name. Raises PersonalError."""
    tensors = _unpickled(data, name) if pickles.is_pickle(data) else _safe(data, name)
    if len(tensors) != 1 or _NOT_TOKENS & tensors.keys():
        raise _unknown(name)
    [(word, vectors)] = tensors.items()
    rows = np.atleast_2d(vectors).astype(np.float32)
    base = _BASES.get(rows.shape[-1], "tiny" if rows.shape[-1] <= _TINY else None)
    if rows.ndim != 2 or base is None:
        known = ", ".join(f"{width} ({base})" for width, base in _BASES.items())
        raise PersonalError(f"{show(name)} has vectors {rows.shape}; I know widths {known}.")
    card = Card(base=base, title=word[:100], method="textual inversion")
    try:
        return Concept(token or _token(word, name), card, {"clip_l": rows})
    except PersonalError as error:
        raise PersonalError(f"{show(name)} is refused. {error.problem}", error.fix) from error


def write(concept: Concept) -> bytes:
    """`learned_embeds.safetensors` for `pipe.load_textual_inversion`. Raises PersonalError where it cannot hold it."""
    if concept.vectors.keys() != {"clip_l"}:
        raise PersonalError(f"{concept.token} has no vectors that one learned_embeds file can hold.")
    return b"".join(pack({str(concept.token.unversioned()): concept.vectors["clip_l"]}, {"format": "pt"}))


def _token(word: str, name: str) -> Token:
    try:
        token = Token.parse(word)
    except PersonalError as error:
        raise PersonalError(f"{show(name)} calls itself {show(word)}. {error.fix}", "Say it with --as.") from error
    return Token(token.owner or _OWNER, token.name, None)


def _safe(data: bytes, name: str) -> dict[str, np.ndarray]:
    layout = check(data, name)
    return {key: array(data, layout, key) for key in layout.tensors}


def _unpickled(data: bytes, name: str) -> dict[str, np.ndarray]:
    content = pickles.read(data, name)
    match list(content.items()) if isinstance(content, dict) else None:
        case [(str(word), pickles.Tensor() as tensor)]:
            return {word: pickles.numbers_of(tensor, name)}
    raise _unknown(name)


def _unknown(name: str) -> PersonalError:
    return PersonalError(f"{show(name)} is not of a format that I read.", "I read our own files and learned_embeds.")
