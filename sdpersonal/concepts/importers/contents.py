"""What a foreign file holds, the same for safetensors, pickles and pictures: tensors by name, and words about them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import PersonalError
from ...prompts import show
from ...storage.file_types import recognise
from ..strict_safetensors import MAX_NAME, MAX_STRANGERS_HEADER, MAX_TENSORS, array, check, damaged, header_length
from . import pickles

OWNER = "imported"  # of concepts whose files name no owner
MAX_PICKLE = 300_000_000  # bytes of a pickle or a picture: what is larger has long been safetensors
_DEPTH = 4  # of containers in a pickle; hypernetworks and checkpoints go no deeper
_TEXT = 2000  # characters of any one word about a file


@dataclass(frozen=True)
class Content:
    """The tensors of one file, and what else it says.

    name: what the file is called; word: what it calls itself, where that counts for more; place: the folder or
    repository it stands in, if that may name the concept; owner: whose token it gets; shapes: every tensor's; facts:
    texts and numbers beside them, nested keys joined by dots; numbers: one tensor, float32 or float16 (bfloat16 is
    widened, exactly); flat: no tensor stands inside another thing.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    numbers: Callable[[str], np.ndarray]
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    word: str = ""
    place: str = ""
    owner: str = OWNER
    flat: bool = True

    def rows(self, key: str) -> np.ndarray:
        """A tensor as vectors: float32 (n, dim). Raises PersonalError where it is neither (dim,) nor (n, dim)."""
        if len(self.shapes[key]) not in (1, 2):
            raise PersonalError(f"{show(self.name)} has vectors {self.shapes[key]}; I read (n, width).")
        found = np.atleast_2d(self.numbers(key))
        if not (finite := np.isfinite(found).all(axis=1)).all():  # before numpy warns of them
            raise damaged(self.name, f"row {finite.argmin()} of its vectors holds numbers that are not finite")
        return np.array(found, np.float32)

    def fact(self, key: str) -> str:
        """A fact as text, bounded; empty where there is none."""
        return str(self.facts.get(key, ""))[:_TEXT]

    def standing_in(self, place: str, owner: str) -> Content:
        return replace(self, place=place, owner=owner)


def opened(data: bytes, name: str) -> Content:
    """The content of a safetensors file or a pickle. Raises PersonalError."""
    return _pickled(data, name) if recognise(data).group in ("zip", "pickle") else _safe(data, name)


def names_in(head: bytes) -> tuple[str, ...]:
    """The tensors' names in the head of a safetensors file that may be too large or odd to be read; else nothing."""
    try:
        header = json.loads(head[8 : 8 + header_length(head, sys.maxsize, MAX_STRANGERS_HEADER)])
    except (ValueError, RecursionError):
        return ()
    return tuple(header) if isinstance(header, dict) else ()


def from_tree(tree: object, name: str) -> Content:
    """Containers as a pickle or a picture holds them, with tensors and arrays in them. Raises PersonalError."""
    tensors: dict[str, pickles.Tensor | np.ndarray] = {}
    facts: dict[str, str | int | float] = {}
    for key, value in _leaves(tree, name):
        (tensors if isinstance(value, pickles.Tensor | np.ndarray) else facts)[key] = value
    if len(tensors) > MAX_TENSORS:
        raise damaged(name, f"it holds {len(tensors):,} tensors, more than {MAX_TENSORS:,}")
    # Many views of one storage would otherwise unfold to more than any file.
    if sum(4 * math.prod(one.shape) for one in tensors.values()) > 2 * MAX_PICKLE:
        raise damaged(name, "its tensors are larger than I read")

    def numbers(key: str) -> np.ndarray:
        one = tensors[key]
        return pickles.numbers_of(one, name) if isinstance(one, pickles.Tensor) else one

    flat = isinstance(tree, dict | list) and tensors.keys() <= _keys(tree)
    return Content(name, {key: one.shape for key, one in tensors.items()}, numbers, facts, flat=flat)


def _safe(data: bytes, name: str) -> Content:
    layout = check(data, name, MAX_STRANGERS_HEADER)
    shapes = {key: place.shape for key, place in layout.tensors.items()}
    return Content(name, shapes, lambda key: array(data, layout, key), layout.metadata)


def _pickled(data: bytes, name: str) -> Content:
    return from_tree(pickles.read(data, name), name)


def _keys(tree: dict | list) -> set[str]:
    return {str(key) for key in (tree if isinstance(tree, dict) else range(len(tree)))}


def _leaves(tree: object, name: str) -> Iterator[tuple[str, object]]:
    """(key, tensor or fact); a list's items are called by their numbers. Raises PersonalError where there is no end."""
    left = [("", tree, 0)]
    seen = 0
    while left:
        key, value, depth = left.pop()
        seen += 1
        if seen > 8 * MAX_TENSORS or len(key) > MAX_NAME:
            raise damaged(name, "it holds more than I read")
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
        )
        if items and depth < _DEPTH:
            pairs = [(f"{key}.{inner}" if key else str(inner), one, depth + 1) for inner, one in items]
            left += reversed(pairs)
        elif isinstance(value, pickles.Tensor | np.ndarray | str | int | float):
            yield key, value[:_TEXT] if isinstance(value, str) else value
