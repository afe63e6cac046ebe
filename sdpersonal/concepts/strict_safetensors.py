"""Validate safetensors bytes before use, and write them so that the same tensors give the same bytes.

The format: 8 bytes, little-endian, the header's length N; N bytes of JSON; then the tensors' bytes (the payload)
without gap or overlap. The safetensors library accepts duplicate keys, empty files, any names and any number of
tensors; the limits here are those that a concept can need, so that a bad file is refused at once, with its reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, printable
from ..storage.file_types import recognise
from ..storage.reading import parse_strict_json

MAX_FILE_BYTES = 4_000_000_000  # bytes: a LoRA of all linear layers of SDXL of rank 256 takes 1.8 GB
MAX_HEADER = 1_000_000  # bytes
MAX_FOREIGN_HEADER = 4_000_000  # bytes: kohya's writer repeats every tag of every photo
MAX_TENSORS = 16_384  # LoHa with DoRA on all layers of SDXL and its text encoders has 6 a layer
MAX_NAME_LENGTH = 256  # characters of a tensor's name
MAX_NAMES_LENGTH = 1_500_000  # characters of all names; twice those of the longest that trainers write
_MAX_VALUES = 6 * MAX_TENSORS  # entries in a header's JSON: four a tensor, and what the metadata add
_LONG_HEADER = 300_000  # bytes from which a header's values are counted before it is parsed
_JSON_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
DTYPE_BYTES = {"F16": 2, "BF16": 2, "F32": 4}  # bytes per number
_SINGLE = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?", "F64": "<f8"}
# Types allowed for a single number: trainers write alpha, or a switch, in PyTorch's type for a Python number.


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's type and shape, and its bytes begin..end of the payload."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class TensorLayout:
    """A validated header: every tensor is in bounds, and they fill the payload exactly."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    payload_start: int  # bytes from the start of the file


def parse_layout(data: bytes, name: str, max_header: int = MAX_HEADER) -> TensorLayout:
    """Parse the layout of a whole file, whose header has at most `max_header` bytes.

    Raises UserError, naming the file `name` and what is wrong with it.
    """
    return parse_head_layout(data[: 8 + max_header], len(data), name, max_header)


def parse_head_layout(head: bytes, size: int, name: str, max_header: int = MAX_HEADER) -> TensorLayout:
    """Parse the layout of a file of `size` bytes from its first bytes; `head` must hold the header."""
    try:
        length = header_length(head, size, max_header)
        return _build_layout(_parse_header(head[8 : 8 + length]), 8 + length, size, is_native=max_header <= MAX_HEADER)
    except ValueError as error:
        raise unreadable_header_error(head, size, name, str(error)) from error


def unreadable_header_error(head: bytes, size: int, name: str, problem: str) -> UserError:
    """Return the error for an unreadable header: the file is of another kind, or else `problem`."""
    kind = recognise(head, size)
    return damaged_file_error(name, problem) if kind.group in ("safetensors", "unknown") else kind.refusal(name)


def header_length(head: bytes, size: int, max_header: int = MAX_HEADER) -> int:
    """Return the number of JSON bytes that follow the first 8. Raises ValueError."""
    if len(head) < 8:
        raise ValueError("it is empty" if not head else "it ends early")
    length = int.from_bytes(head[:8], "little")
    if length > max_header:
        raise ValueError(f"its header is longer than {max_header // 10**6} MB, or it is no safetensors file")
    if 8 + length > size:
        raise ValueError("it ends early")
    return length


def damaged_file_error(name: str, problem: str) -> UserError:
    return UserError(f"{printable(name)} is refused: {problem}.", "Fetch the file again, or ask whoever made it.")


def read_tensor(data: bytes, layout: TensorLayout, name: str) -> np.ndarray:
    """Return one tensor, uncopied where possible: float16 and float32 stay, bfloat16 becomes float32."""
    info = layout.tensors[name]
    raw = memoryview(data)[layout.payload_start + info.begin : layout.payload_start + info.end]
    return to_array(raw, info.dtype).reshape(info.shape)


def to_array(raw: bytes | memoryview, dtype: str) -> np.ndarray:
    """Return little-endian bytes as an array, read-only if uncopied; bfloat16 is widened to float32, exactly."""
    if dtype == "BF16":  # numpy has no bfloat16: it is the upper half of a float32
        wide = np.frombuffer(raw, "<u2").astype("<u4")
        wide <<= 16
        return wide.view("<f4")
    if dtype in _SINGLE:
        return np.frombuffer(raw, _SINGLE[dtype]).astype(np.float32)
    array = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[dtype])
    return array if array.flags.aligned else array.copy()


def serialize(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> list[bytes | memoryview]:
    """Return the parts of a file: its header (with its length), then its payload.

    tensors: float32 and float16 only. They are written in the order of `sort_tensors`.
    """
    tensors = sort_tensors(tensors)
    header: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for name, tensor in tensors.items():
        dtype = "F16" if tensor.dtype == np.float16 else "F32"
        offsets = [position, position + tensor.nbytes]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    raw = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # keeps the tensors aligned for programs that map the file
    return [len(raw).to_bytes(8, "little") + raw, *tensor_bytes(tensors)]


def tensor_bytes(tensors: dict[str, np.ndarray]) -> list[memoryview]:
    """Return the tensors' bytes in the file's order, little-endian; not copied where they already are."""
    little = (tensor.astype(tensor.dtype.newbyteorder("<"), copy=False) for tensor in sort_tensors(tensors).values())
    return [tensor.reshape(-1).view(np.uint8).data for tensor in little]


def sort_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sort tensors by type, the widest first, which keeps all aligned; then by name."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def check_json_size(raw: bytes) -> None:
    """Raise ValueError where a header has more lists and entries than it can need: parsing it would take seconds."""
    if len(raw) <= _LONG_HEADER:
        return
    bare = _JSON_TEXT.sub(b"", raw)
    if bare.count(b":") > _MAX_VALUES or bare.count(b"[") + bare.count(b"{") > _MAX_VALUES:
        raise ValueError(f"its header holds more values than {MAX_TENSORS:,} tensors need")


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError where the names of tensors are too many or too long to be compared with patterns."""
    names = tuple(names)
    if len(names) > MAX_TENSORS + 1:  # with the metadata
        raise ValueError(f"it holds {len(names):,} tensors, more than {MAX_TENSORS:,}")
    if too_long := next((name for name in names if len(name) > MAX_NAME_LENGTH), None):
        raise ValueError(f"{printable(too_long)} is not a name for a tensor")
    if sum(map(len, names)) > MAX_NAMES_LENGTH:
        raise ValueError("the names of its tensors are too long")


def _parse_header(raw: bytes) -> dict[str, object]:
    check_json_size(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("its header is not UTF-8 text") from error
    header = parse_strict_json(text) if text.startswith("{") else None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header


def _build_layout(header: dict[str, object], start: int, size: int, is_native: bool) -> TensorLayout:
    """Check a header and build its layout. is_native: single numbers too must be of a type that `serialize` writes."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not all text")
    if not header:
        raise ValueError("it holds no tensors")
    check_names(header)
    tensors = {name: _parse_tensor_info(name, entry, is_native) for name, entry in header.items()}
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].begin):
        if info.begin != position:
            raise ValueError(f"before tensor {printable(name)} there is a hole or an overlap")
        position = info.end
    if start + position != size:
        raise ValueError("it ends early" if start + position > size else "bytes follow its last tensor")
    return TensorLayout(metadata, tensors, start)


def _parse_tensor_info(name: str, entry: object, is_native: bool) -> TensorInfo:
    if not (0 < len(name) <= MAX_NAME_LENGTH and name.isprintable()):
        raise ValueError(f"{printable(name)} is not a name for a tensor")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {printable(name)} is not described as the format requires")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    is_valid = _are_whole_numbers(shape) and len(shape) <= 5 and all(0 < length < 2**32 for length in shape)
    width = _width(dtype, not is_native and is_valid and math.prod(shape) == 1)
    if not width:
        raise ValueError(f"tensor {printable(name)} is of type {printable(str(dtype), 20)}, not F16, BF16 or F32")
    if not is_valid:
        raise ValueError(f"tensor {printable(name)} has an impossible shape")
    if not (_are_whole_numbers(offsets) and len(offsets) == 2):
        raise ValueError(f"tensor {printable(name)} has impossible offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * width:
        raise ValueError(f"the shape of tensor {printable(name)} does not fit its bytes")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _width(dtype: object, is_single: bool) -> int:
    """Return the bytes per number; 0 for an unsupported type. is_single: a foreign tensor of one number."""
    if not isinstance(dtype, str):
        return 0
    return np.dtype(_SINGLE[dtype]).itemsize if is_single and dtype in _SINGLE else DTYPE_BYTES.get(dtype, 0)


def _are_whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
