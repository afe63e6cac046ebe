"""What a foreign file holds, the same for safetensors, pickles and pictures: tensors by name, and words about them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import UserError
from ...prompts import printable
from ...storage.file_types import recognise
from ..strict_safetensors import (
    MAX_FOREIGN_HEADER,
    MAX_NAME_LENGTH,
    MAX_TENSORS,
    damaged_file_error,
    header_length,
    parse_layout,
    read_tensor,
)
from . import pickles

DEFAULT_OWNER = "imported"  # of concepts whose files name no owner
MAX_PICKLE_BYTES = 300_000_000  # bytes of a pickle or a picture: what is larger has long been safetensors
_MAX_DEPTH = 4  # of containers in a pickle; hypernetworks and checkpoints go no deeper
_MAX_TEXT = 2000  # characters of any one word about a file


@dataclass(frozen=True)
class FileContents:
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
    owner: str = DEFAULT_OWNER
    flat: bool = True

    def rows(self, key: str) -> np.ndarray:
        """A tensor as vectors: float32 (n, dim). Raises UserError where it is neither (dim,) nor (n, dim)."""
        if len(self.shapes[key]) not in (1, 2):
            raise UserError(f"{printable(self.name)} has vectors {self.shapes[key]}; I read (n, width).")
        found = np.atleast_2d(self.numbers(key))
        if not (finite := np.isfinite(found).all(axis=1)).all():  # before numpy warns of them
            raise damaged_file_error(
                self.name, f"row {finite.argmin()} of its vectors holds numbers that are not finite"
            )
        return np.array(found, np.float32)

    def fact(self, key: str) -> str:
        """A fact as text, bounded; empty where there is none."""
        return str(self.facts.get(key, ""))[:_MAX_TEXT]

    def with_origin(self, place: str, owner: str) -> FileContents:
        return replace(self, place=place, owner=owner)


def read_contents(data: bytes, name: str) -> FileContents:
    """The content of a safetensors file or a pickle. Raises UserError."""
    return _from_pickle(data, name) if recognise(data).group in ("zip", "pickle") else _from_safetensors(data, name)


def tensor_names(head: bytes) -> tuple[str, ...]:
    """The tensors' names in the head of a safetensors file that may be too large or odd to be read; else nothing."""
    try:
        header = json.loads(head[8 : 8 + header_length(head, sys.maxsize, MAX_FOREIGN_HEADER)])
    except (ValueError, RecursionError):
        return ()
    return tuple(header) if isinstance(header, dict) else ()


def from_tree(tree: object, name: str) -> FileContents:
    """Containers as a pickle or a picture holds them, with tensors and arrays in them. Raises UserError."""
    tensors: dict[str, pickles.PickledTensor | np.ndarray] = {}
    facts: dict[str, str | int | float] = {}
    for key, value in _flatten(tree, name):
        (tensors if isinstance(value, pickles.PickledTensor | np.ndarray) else facts)[key] = value
    if len(tensors) > MAX_TENSORS:
        raise damaged_file_error(name, f"it holds {len(tensors):,} tensors, more than {MAX_TENSORS:,}")
    # Many views of one storage would otherwise unfold to more than any file.
    if sum(4 * math.prod(one.shape) for one in tensors.values()) > 2 * MAX_PICKLE_BYTES:
        raise damaged_file_error(name, "its tensors are larger than I read")

    def numbers(key: str) -> np.ndarray:
        one = tensors[key]
        return pickles.load_numbers(one, name) if isinstance(one, pickles.PickledTensor) else one

    flat = isinstance(tree, dict | list) and tensors.keys() <= _keys(tree)
    return FileContents(name, {key: one.shape for key, one in tensors.items()}, numbers, facts, flat=flat)


def _from_safetensors(data: bytes, name: str) -> FileContents:
    layout = parse_layout(data, name, MAX_FOREIGN_HEADER)
    shapes = {key: place.shape for key, place in layout.tensors.items()}
    return FileContents(name, shapes, lambda key: read_tensor(data, layout, key), layout.metadata)


def _from_pickle(data: bytes, name: str) -> FileContents:
    return from_tree(pickles.read(data, name), name)


def _keys(tree: dict | list) -> set[str]:
    return {str(key) for key in (tree if isinstance(tree, dict) else range(len(tree)))}


def _flatten(tree: object, name: str) -> Iterator[tuple[str, object]]:
    """(key, tensor or fact); a list's items are called by their numbers. Raises UserError where there is no end."""
    left = [("", tree, 0)]
    seen = 0
    while left:
        key, value, depth = left.pop()
        seen += 1
        if seen > 8 * MAX_TENSORS or len(key) > MAX_NAME_LENGTH:
            raise damaged_file_error(name, "it holds more than I read")
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
        )
        if items and depth < _MAX_DEPTH:
            pairs = [(f"{key}.{inner}" if key else str(inner), one, depth + 1) for inner, one in items]
            left += reversed(pairs)
        elif isinstance(value, pickles.PickledTensor | np.ndarray | str | int | float):
            yield key, value[:_MAX_TEXT] if isinstance(value, str) else value
