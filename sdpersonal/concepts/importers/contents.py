"""Read a foreign file's contents, alike for safetensors, pickles and images: tensors by name, and facts about them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import UserError, printable
from ...storage.file_types import recognise
from ..strict_safetensors import (
    MAX_FOREIGN_HEADER,
    MAX_NAME_LENGTH,
    MAX_TENSORS,
    check_json_size,
    check_names,
    damaged_file_error,
    header_length,
    parse_layout,
    read_tensor,
)
from . import pickles

_Leaf = pickles.PickledTensor | np.ndarray | str | int | float  # what the containers of a pickle may hold
DEFAULT_OWNER = "imported"  # of concepts whose files name no owner
MAX_PICKLE_BYTES = 300_000_000  # bytes of a pickle or an image: larger files have long been safetensors
_MAX_VALUES = 8 * MAX_TENSORS
_MAX_DEPTH = 4  # of containers in a pickle; hypernetworks and checkpoints go no deeper
_MAX_SHARED_BYTES = 1_000_000  # bytes that tensors may hold twice: small ones share their numbers in honest files
_MAX_TEXT = 2000  # characters of any one fact about a file


@dataclass(frozen=True)
class FileContents:
    """The tensors of one file, and its other facts.

    name: the file's name; name_in_file: the name inside it, where that takes precedence; folder_name: the folder or
    repository around it, if that may name the concept; owner: the owner of its token; shapes: every tensor's; metadata:
    texts and numbers besides, nested keys joined by dots; load_tensor: loads one tensor, float32 or float16 (bfloat16
    is widened, exactly); is_flat: no tensor is nested in a container.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    load_tensor: Callable[[str], np.ndarray]
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)
    name_in_file: str = ""
    folder_name: str = ""
    owner: str = DEFAULT_OWNER
    is_flat: bool = True

    def embeddings(self, key: str) -> np.ndarray:
        """Return a tensor as vectors: float32 (n, dim). Raises UserError where it is neither (dim,) nor (n, dim)."""
        if len(self.shapes[key]) not in (1, 2):
            raise UserError(f"{printable(self.name)} has vectors {self.shapes[key]}; they must be (n, width).")
        vectors = np.atleast_2d(self.load_tensor(key))
        if not (finite := np.isfinite(vectors).all(axis=1)).all():  # before numpy warns of them
            raise damaged_file_error(
                self.name, f"row {finite.argmin()} of its vectors holds numbers that are not finite"
            )
        return np.array(vectors, np.float32)

    def fact(self, key: str) -> str:
        """Return a fact as text, cut to a limit; empty where there is none."""
        return str(self.metadata.get(key, ""))[:_MAX_TEXT]

    def from_folder(self, folder_name: str, owner: str) -> FileContents:
        """Return the same contents with the name of the folder around the file, and the owner of its token."""
        return replace(self, folder_name=folder_name, owner=owner)


def read_contents(data: bytes, name: str) -> FileContents:
    """Read a safetensors file or a pickle. Raises UserError."""
    return _from_pickle(data, name) if recognise(data).group in ("zip", "pickle") else _from_safetensors(data, name)


def tensor_names(head: bytes) -> tuple[str, ...]:
    """Return the tensors' names from the head of a safetensors file, even one too large or odd to read; else none.

    They are not more nor longer than those of a file that can be read.
    """
    try:
        raw = head[8 : 8 + header_length(head, sys.maxsize, MAX_FOREIGN_HEADER)]
        check_json_size(raw)
        header = json.loads(raw)
        check_names(header if isinstance(header, dict) else ())
    except (ValueError, RecursionError):
        return ()
    return tuple(header) if isinstance(header, dict) else ()


def from_tree(tree: object, name: str, size: int) -> FileContents:
    """Build the contents from nested containers, as a pickle or an image of `size` bytes holds them.

    Raises UserError.
    """
    tensors: dict[str, pickles.PickledTensor | np.ndarray] = {}
    facts: dict[str, str | int | float] = {}
    for key, value in _flatten(tree, name):
        if isinstance(value, pickles.PickledTensor | np.ndarray):
            tensors[key] = value
        else:
            facts[key] = value
    if len(tensors) > MAX_TENSORS:
        raise damaged_file_error(name, f"it holds {len(tensors):,} tensors, more than {MAX_TENSORS:,}")
    # Many views of one storage would otherwise expand to more than the file holds.
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * size + _MAX_SHARED_BYTES:
        raise damaged_file_error(name, "its tensors are larger than the file itself")

    def numbers(key: str) -> np.ndarray:
        tensor = tensors[key]
        return pickles.load_numbers(tensor, name) if isinstance(tensor, pickles.PickledTensor) else tensor

    flat = isinstance(tree, dict | list) and tensors.keys() <= _keys(tree)
    return FileContents(name, {key: tensor.shape for key, tensor in tensors.items()}, numbers, facts, is_flat=flat)


def _from_safetensors(data: bytes, name: str) -> FileContents:
    layout = parse_layout(data, name, MAX_FOREIGN_HEADER)
    shapes = {key: info.shape for key, info in layout.tensors.items()}
    return FileContents(name, shapes, lambda key: read_tensor(data, layout, key), layout.metadata)


def _from_pickle(data: bytes, name: str) -> FileContents:
    return from_tree(pickles.read(data, name), name, len(data))


def _keys(tree: dict | list) -> set[str]:
    return {str(key) for key in (tree if isinstance(tree, dict) else range(len(tree)))}


def _flatten(tree: object, name: str) -> Iterator[tuple[str, _Leaf]]:
    """Yield (key, tensor or fact); a list's items are named by index. Raises UserError where there are too many."""
    stack = [("", tree, 0)]
    visited = 0
    while stack:
        key, value, depth = stack.pop()
        visited += 1
        if visited > _MAX_VALUES:
            raise damaged_file_error(name, "it holds too many values")
        if isinstance(value, dict | list | tuple):
            if depth < _MAX_DEPTH:
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                stack += reversed([(_join_name(key, inner, name), item, depth + 1) for inner, item in pairs])
        elif isinstance(value, pickles.PickledTensor | np.ndarray | str | int | float):
            yield key, value


def _join_name(key: str, inner: str | int, name: str) -> str:
    """Return the name of a value in a container called `key`. Raises UserError where it is too long."""
    if len(key) + len(text := str(inner)) > MAX_NAME_LENGTH:
        raise damaged_file_error(name, f"the name {printable(text)} in it is too long")
    return f"{key}.{text}" if key else text
