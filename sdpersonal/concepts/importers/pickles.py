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

MAX_OPCODES = 150_000  # instructions in one file: an embedding takes about 60, a LoRA of SDXL 60,000
MAX_ITEMS = 300_000  # items that these put into containers, counted again whenever they are copied
MAX_PROGRAM_BYTES = 8_000_000  # bytes of instructions and of what follows them; a LoRA of SDXL takes 500 kB
MAX_MEMBERS = 4096
_MAX_DIRECTORY_BYTES = 4_000_000  # bytes of the zip's list of members; torch's names are about 60 characters long
_MAX_KEY_LENGTH = 256  # characters of a storage's name, which is a number or the name of a member
_MAX_AXES = 5
_MAX_INT_BITS = 64  # integers in a file; longer ones cost more than they look, and print as errors of their own
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


class _Program(io.BytesIO):
    """A file as its instructions read it: their arguments are counted before they are read."""

    left = MAX_PROGRAM_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(self.left + 1 if size is None or size < 0 else min(size, self.left + 1))
        return self._count(data)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._count(super().readline(self.left + 1))

    def _count(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("too long")
        return data


@dataclass
class _Budget:
    """What the pickles of one file may still cost together."""

    opcodes: int = MAX_OPCODES
    items: int = MAX_ITEMS

    def spend(self, opcodes: int = 0, items: int = 0) -> None:
        self.opcodes -= opcodes
        self.items -= items
        if min(self.opcodes, self.items) < 0:
            raise ValueError("too long")


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

    @property
    def nbytes(self) -> int:
        """The bytes that its numbers take in the file."""
        return math.prod(self.shape) * _storage_width(self.storage.dtype)

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
    file = _Program(data)
    file.left = _MAX_DIRECTORY_BYTES
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    file.left = 2 * len(data)  # each member is read once
    [program] = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    root = program.removesuffix("data.pkl")
    if root + "byteorder" in names and _read_member(archive, root + "byteorder") != b"little":
        raise ValueError("not little-endian")
    storages = _MemberStorages(archive, f"{root}data/", len(data))
    return _unpickle(_Program(_read_member(archive, program, MAX_PROGRAM_BYTES)), storages.fetch, _Budget())


class _MemberStorages:
    """The storages in a zip. Each is read once, however many tensors are views of it; members do not overlap."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int):
        self.archive, self.folder, self.left = archive, folder, size
        self.read: dict[str, bytes] = {}

    def fetch(self, storage: PickledStorage) -> bytes:
        if storage.key not in self.read:
            member = _read_member(self.archive, self.folder + storage.key, self.left)
            self.left -= len(member)
            self.read[storage.key] = member
        return self.read[storage.key]


def _read_member(archive: zipfile.ZipFile, name: str, limit: int = 1000) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing; a bomb does
        raise ValueError("compressed")
    if info.file_size > limit:
        raise ValueError("too long")
    return archive.read(info)


def _read_legacy(data: bytes) -> object:
    file, budget = _Program(data), _Budget()
    storages: dict[str, memoryview] = {}
    if _unpickle(file, _no_storage, budget) != _MAGIC or _unpickle(file, _no_storage, budget) != 1001:
        raise ValueError("not of torch")
    if _expect_type(_unpickle(file, _no_storage, budget), dict).get("little_endian") is not True:
        raise ValueError("not little-endian")
    widths: dict[str, int] = {}
    content = _unpickle(file, lambda storage: storages[storage.key], budget, widths)
    for item in _expect_type(_unpickle(file, _no_storage, budget), list):
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


def _unpickle(file: _Program, fetch: _Fetch, budget: _Budget, widths: dict[str, int] | None = None) -> object:
    """Run one pickle from where `file` stands. widths: filled with the bytes per number of each storage."""
    machine = _PickleMachine(fetch, budget, {} if widths is None else widths)
    for code, argument, _ in pickletools.genops(file):
        budget.spend(opcodes=1)
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
_OBJECTS = ("GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "NEWOBJ", "BUILD")


class _PickleMachine:
    """The stack machine of pickle protocols 0 to 5, as far as torch.save uses it."""

    def __init__(self, fetch: _Fetch, budget: _Budget, widths: dict[str, int]):
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.fetch = fetch
        self.budget = budget
        self.widths = widths

    def step(self, code: str, argument: object) -> None:
        stack = self.stack
        if code in _LITERALS:
            stack.append(_expect_short(argument))
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
        elif code in _OBJECTS:
            self._step_object(code, argument)
        elif code not in ("PROTO", "FRAME"):
            raise _RefusedGlobal(f"the instruction {code}")

    def _step_object(self, code: str, argument: object) -> None:
        """Execute an instruction that names a class or a function, or makes an object of one."""
        stack = self.stack
        if code == "GLOBAL":
            stack.append(_allowed_global(_expect_type(argument, str)))
        elif code == "STACK_GLOBAL":
            name, module = _expect_type(stack.pop(), str), _expect_type(stack.pop(), str)
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
            parameters = _expect_type(_expect_type(state, dict).get("_parameters", {}), dict)
            self.budget.spend(items=len(parameters))
            stack[-1].update(parameters)

    def _to_mark(self) -> list[object]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        self.budget.spend(items=len(items))
        return items

    def _persistent(self, persistent: tuple[object, ...]) -> PickledStorage | _Global:
        if len(persistent) > 6:
            raise ValueError("no storage")
        if persistent[0] == "module":  # the old layout puts a class beside its source, which is ignored
            return _expect_type(persistent[1], _Global)
        return self._storage(persistent)

    def _storage(self, persistent: tuple[object, ...]) -> PickledStorage:
        word, kind, key, _, count, *view = persistent  # the old layout adds a view, which torch no longer writes
        word_of_kind = _expect_type(kind, _Global).name
        if word != "storage" or not _is_storage(word_of_kind) or view not in ([], [None]):
            raise ValueError("no storage")
        if len(_expect_type(key, str)) > _MAX_KEY_LENGTH:
            raise ValueError("a storage's name is too long")
        dtype = _STORAGES.get(word_of_kind, word_of_kind.partition(" ")[2])
        storage = PickledStorage(dtype, _expect_type(key, str), _expect_type(count, int))
        self.widths[storage.key] = _storage_width(dtype)
        return storage

    def _call(self, name: str, arguments: tuple[object, ...]) -> object:
        if name not in _CALLABLES | _SET_TYPES:
            raise _RefusedGlobal(name.replace(" ", "."))
        if name in _SET_TYPES:
            return _expect_type(arguments[0], list) if arguments else []
        if name.endswith("OrderedDict"):
            if arguments:  # torch calls it empty and adds the items afterwards; others would be copied at each call
                raise ValueError("an OrderedDict with arguments")
            return _StatefulDict()
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
        if len(shape) > _MAX_AXES:
            raise ValueError("an impossible shape")
        lengths = tuple(_expect_type(length, int) for length in shape)
        if min(lengths, default=1) < 1 or offset < 0:
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


def _storage_width(dtype: str) -> int:
    """Return the bytes per number."""
    return DTYPE_BYTES.get(dtype) or _OTHER_STORAGES.get(dtype, 1)


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


def _expect_short(value: object) -> object:
    if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS and value != _MAGIC:
        raise ValueError("an integer is too long")
    return value


def _expect_key(value: object) -> str | int:
    # Other keys are of no use here, and the hash of a deep tuple would end the process.
    return value if isinstance(value, str) else _expect_type(value, int)


def _expect_type(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where it does not belong")
    return value
