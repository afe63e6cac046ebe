"""Read torch.save files without ever running what is in them.

A pickle is a program for a small stack machine. This one supports numbers, text, lists, tuples, dictionaries and
tensors. It can call nothing: where a file names a function, the name is compared with the few that torch writes for
tensors and for `nn.ParameterDict` (the first textual inversions are one), and the tensor is noted; any other name is an
error. No code of `pickle` or `torch` runs on the file.

Layouts: the zip of torch >= 1.6 (`*/data.pkl`, `*/data/<key>`), and before it five pickles followed by raw storages.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...errors import UserError, printable
from ...storage.file_types import recognise
from ..strict_safetensors import DTYPE_BYTES, damaged_file_error, to_array

MAX_OPCODES = 150_000  # instructions in one pickle: an embedding takes about 60, a LoRA of SDXL 60,000
MAX_MEMBERS = 4096
_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the old layout
_ZIP_ENTRY = b"PK\x01\x02"
_PROGRAM = re.compile(rb"/data\.pkl")  # the member of torch's zip that describes its content

# What a broken file raises in pickletools, zipfile and here. RuntimeError covers encryption and endless nesting.
_READ_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    OSError,
    zipfile.BadZipFile,
)

_STORAGES = {"torch FloatStorage": "F32", "torch HalfStorage": "F16", "torch BFloat16Storage": "BF16"}
# Accepted, since a token's number may stand beside its vectors; never read. Bytes per number.
_OTHER_STORAGES = {"DoubleStorage": 8, "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1} | {
    "ByteStorage": 1,
    "BoolStorage": 1,
}
_PARAMETERS = "torch.nn.modules.container ParameterDict"
_SET_TYPES = {"__builtin__ set", "builtins set"}
_CALLABLES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
}
_ALLOWED_GLOBALS = _CALLABLES | _SET_TYPES | _STORAGES.keys() | {_PARAMETERS}


_T = TypeVar("_T")


@dataclass(frozen=True)
class PickledStorage:
    """A reference to numbers elsewhere in the file."""

    dtype: str
    key: str
    count: int


_Fetch = Callable[[PickledStorage], bytes | memoryview]


@dataclass(frozen=True)
class PickledTensor:
    """A reference to a tensor; `load_numbers` reads its numbers."""

    storage: PickledStorage
    offset: int  # numbers before its first
    shape: tuple[int, ...]
    fetch: _Fetch

    def numpy(self) -> np.ndarray:
        if self.storage.dtype not in DTYPE_BYTES:
            raise _UnsupportedContent(
                f"its numbers are in a {printable(self.storage.dtype)}, not float32, float16 or bfloat16"
            )
        width = DTYPE_BYTES[self.storage.dtype]
        raw = self.fetch(self.storage)
        count = math.prod(self.shape)
        if len(raw) != self.storage.count * width or self.offset + count > self.storage.count:
            raise ValueError("a tensor reaches beyond its numbers")
        part = memoryview(raw)[self.offset * width : (self.offset + count) * width]
        return to_array(part, self.storage.dtype).reshape(self.shape)


@dataclass(frozen=True)
class _Global:
    name: str  # "module name"


class _StatefulDict(dict[str | int, object]):
    """A stand-in for an OrderedDict or a ParameterDict, which may be given a state after they were made."""


class _RefusedGlobal(ValueError):
    """Something that no tensor needs; its text is that name."""


class _UnsupportedContent(ValueError):
    """Something harmless that is not read here; its text is for the user."""


def read(data: bytes, name: str) -> object:
    """Read the object in the zip or pickle called `name`: plain containers, with a `PickledTensor` for every tensor.

    Raises UserError.
    """
    kind = recognise(data)
    with _translate_errors(name):
        if kind.group == "zip" and not _PROGRAM.search(data):
            raise kind.refusal(name)
        return _read_zip(data) if kind.group == "zip" else _read_legacy(data)


def load_numbers(tensor: PickledTensor, name: str) -> np.ndarray:
    """Load the tensor's numbers: float32 or float16 (bfloat16 widened). Raises UserError where the file lacks them."""
    with _translate_errors(name):
        return tensor.numpy()


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    try:
        yield
    except _RefusedGlobal as error:
        fix = "Ask its author for a .safetensors file."
        raise UserError(f"{printable(name)} asks to run {printable(str(error))}; refused.", fix) from error
    except _UnsupportedContent as error:
        raise damaged_file_error(name, str(error)) from error
    except _READ_ERRORS as error:
        raise damaged_file_error(name, "it is no torch file, or a damaged one") from error


def _read_zip(data: bytes) -> object:
    if data.count(_ZIP_ENTRY) > MAX_MEMBERS:  # before zipfile makes an object of each
        raise ValueError("too many members")
    archive = zipfile.ZipFile(io.BytesIO(data))
    names = archive.namelist()
    [program] = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    root = program.removesuffix("data.pkl")
    if root + "byteorder" in names and _read_member(archive, root + "byteorder") != b"little":
        raise ValueError("not little-endian")
    return _unpickle(
        io.BytesIO(_read_member(archive, program)), lambda storage: _read_member(archive, f"{root}data/{storage.key}")
    )


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing; a bomb does
        raise ValueError("compressed")
    return archive.read(info)


def _read_legacy(data: bytes) -> object:
    file = io.BytesIO(data)
    storages: dict[str, memoryview] = {}
    if _unpickle(file, _no_storage) != _MAGIC or _unpickle(file, _no_storage) != 1001:
        raise ValueError("not of torch")
    if _expect_type(_unpickle(file, _no_storage), dict).get("little_endian") is not True:
        raise ValueError("not little-endian")
    widths: dict[str, int] = {}
    content = _unpickle(file, lambda storage: storages[storage.key], widths)
    for item in _expect_type(_unpickle(file, _no_storage), list):
        key = _expect_type(item, str)
        count = int.from_bytes(file.read(8), "little")
        start = file.tell()
        end = start + count * widths[key]
        if end > len(data):
            raise ValueError("it ends early")
        file.seek(end)
        storages[key] = memoryview(data)[start:end]
    return content


def _no_storage(storage: PickledStorage) -> bytes:
    raise ValueError("a tensor where none belongs")


def _unpickle(file: io.BytesIO, fetch: _Fetch, widths: dict[str, int] | None = None) -> object:
    """Run one pickle from where `file` stands. widths: filled with the bytes per number of each storage."""
    machine = _PickleMachine(fetch, {} if widths is None else widths)
    for count, (code, argument, _) in enumerate(pickletools.genops(file)):
        if count > MAX_OPCODES:
            raise ValueError("too long")
        if code.name == "STOP":
            return machine.stack.pop()
        machine.step(code.name, argument)
    raise ValueError("no end")


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], object]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _PickleMachine:
    """The stack machine of pickle protocols 0 to 5, as far as torch.save uses it."""

    def __init__(self, fetch: _Fetch, widths: dict[str, int]):
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.fetch = fetch
        self.widths = widths

    def step(self, code: str, argument: object) -> None:
        stack = self.stack
        if code in _LITERALS:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code in _TUPLES:
            count = _TUPLES[code]
            stack[-count:] = [tuple(stack[-count:])]
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[_expect_type(argument, int)] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[_expect_type(argument, int)])
        elif code == "MARK":
            self.marks.append(len(stack))
        elif code in ("TUPLE", "LIST", "DICT"):
            stack.append(_COLLECTIONS[code](self._to_mark()))
        elif code in ("APPEND", "APPENDS"):
            items = self._to_mark() if code == "APPENDS" else [stack.pop()]
            _expect_type(stack[-1], list).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = self._to_mark() if code == "SETITEMS" else [stack.pop() for _ in "kv"][::-1]
            _expect_type(stack[-1], dict).update(_to_dict(items))
        elif code == "GLOBAL":
            stack.append(_allowed_global(_expect_type(argument, str)))
        elif code == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_allowed_global(f"{module} {name}"))
        elif code == "BINPERSID":
            stack.append(self._persistent(_expect_type(stack.pop(), tuple)))
        elif code == "REDUCE":
            arguments, called = _expect_type(stack.pop(), tuple), _expect_type(stack.pop(), _Global)
            stack.append(self._call(called.name, arguments))
        elif code == "NEWOBJ":
            arguments, created = _expect_type(stack.pop(), tuple), _expect_type(stack.pop(), _Global)
            if created.name != _PARAMETERS or arguments:
                raise _RefusedGlobal(f"{created.name.replace(' ', '.')}.__new__")
            stack.append(_StatefulDict())
        elif code == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _StatefulDict):
                raise _RefusedGlobal("the instruction BUILD")
            # A ParameterDict's state has its parameters; what torch notes on an OrderedDict is of no use here.
            stack[-1].update(_expect_type(_expect_type(state, dict).get("_parameters", {}), dict))
        elif code not in ("PROTO", "FRAME"):
            raise _RefusedGlobal(f"the instruction {code}")

    def _to_mark(self) -> list[object]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _persistent(self, persistent: tuple[object, ...]) -> PickledStorage | _Global:
        if persistent[0] == "module":  # the old layout puts a class beside its source, which is ignored
            return _expect_type(persistent[1], _Global)
        return self._storage(persistent)

    def _storage(self, persistent: tuple[object, ...]) -> PickledStorage:
        word, kind, key, _, count = persistent[:5]  # the old layout adds a view, which torch no longer writes
        word_of_kind = _expect_type(kind, _Global).name
        if word != "storage" or not _is_storage(word_of_kind) or any(persistent[5:]):
            raise ValueError("no storage")
        dtype = _STORAGES.get(word_of_kind, word_of_kind.partition(" ")[2])
        storage = PickledStorage(dtype, _expect_type(key, str), _expect_type(count, int))
        self.widths[storage.key] = DTYPE_BYTES.get(dtype) or _OTHER_STORAGES.get(dtype, 1)
        return storage

    def _call(self, name: str, arguments: tuple[object, ...]) -> object:
        if name not in _CALLABLES | _SET_TYPES:
            raise _RefusedGlobal(name.replace(" ", "."))
        if name in _SET_TYPES:
            return _expect_type(arguments[0], list) if arguments else []
        if name.endswith("OrderedDict"):
            return _StatefulDict(_to_dict(list(arguments)))  # torch calls it empty and adds the items afterwards
        if name.endswith("_rebuild_parameter"):
            return _expect_type(arguments[0], PickledTensor)
        storage, offset, shape, strides = arguments[:4]
        return self._tensor(
            _expect_type(storage, PickledStorage),
            _expect_type(offset, int),
            _expect_type(shape, tuple),
            _expect_type(strides, tuple),
        )

    def _tensor(
        self, storage: PickledStorage, offset: int, shape: tuple[object, ...], strides: tuple[object, ...]
    ) -> PickledTensor:
        lengths = tuple(_expect_type(length, int) for length in shape)
        if min(lengths, default=1) < 1 or offset < 0 or len(lengths) > 5:
            raise ValueError("an impossible shape")
        if not _is_contiguous(lengths, strides):
            raise ValueError("not contiguous")
        return PickledTensor(storage, offset, lengths, self.fetch)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[object, ...]) -> bool:
    """Return whether the numbers lie in order; an axis of length 1 may have any stride, which is never used."""
    expected = (math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return len(strides) == len(shape) and all(
        length == 1 or stride == step for length, stride, step in zip(shape, strides, expected, strict=True)
    )


def _is_storage(name: str) -> bool:
    return name in _STORAGES or name.removeprefix("torch ") in _OTHER_STORAGES


def _allowed_global(name: str) -> _Global:
    if name not in _ALLOWED_GLOBALS and not _is_storage(name):
        module, _, rest = name.partition(" ")
        # Pickles name modules as the system or the Python that wrote them did.
        raise _RefusedGlobal(f"{ {'posix': 'os', 'nt': 'os', '__builtin__': 'builtins'}.get(module, module) }.{rest}")
    return _Global(name)


def _to_dict(items: list[object]) -> dict[str | int, object]:
    return {_expect_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


_COLLECTIONS: dict[str, Callable[[list[object]], object]] = {"TUPLE": tuple, "LIST": list, "DICT": _to_dict}


def _expect_key(value: object) -> str | int:
    # Other keys are of no use here, and the hash of a deep tuple would end the process.
    return value if isinstance(value, str) else _expect_type(value, int)


def _expect_type(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where it does not belong")
    return value
