"""A CUDA card without memory: tensors have shapes only, and what a card would see is counted.

torch's FakeTensor on "cuda" needs a device guard that torch's build for the CPU lacks; `fake_cuda.cpp` is one that does
nothing. It must be loaded before torch is imported, and stays: use this module in a process of its own, with the
compiled library in LD_PRELOAD.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SOURCE = Path(__file__).with_suffix(".cpp")
# Their result, or its shape, depends on values: the CPU waits for them.
_READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
_NO_KERNEL = {
    "device",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "_unsafe_view",
    "set_",
}


def compiler() -> str | None:
    """Return a C++ compiler of this machine."""
    return shutil.which("g++") or shutil.which("clang++")


def compile_guard(target: Path) -> None:
    root = Path(torch.__file__).parent
    paths = [f"-I{root}/include", f"-L{root}/lib", f"-Wl,-rpath,{root}/lib"]
    line = [str(compiler()), "-O0", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(target), *paths]
    subprocess.run([*line, "-lc10", "-ltorch_cpu"], check=True, capture_output=True, text=True)


class Trace(TorchDispatchMode):
    """Counts the kernels that a card would be given, and lists where the CPU would wait for it.

    It waits where it reads a value, and where it copies between pageable memory and the card.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in _READS and inputs[0].is_cuda:
            self.wait(name)
        if name == "_local_scalar_dense" and isinstance(inputs[0], FakeTensor):
            return 1.0 if inputs[0].is_floating_point() else 1
        out = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if name in ("_to_copy", "copy_"):
            self._check_copy(name, inputs, outputs, args, kwargs)
        if name in ("index", "index_put", "index_put_", "_unsafe_index") and inputs[0].is_cuda:
            for index in (x for x in args[1] if isinstance(x, Tensor)):
                if index.dtype in (torch.bool, torch.uint8) or (index.device.type == "cpu" and index.dim()):
                    self.wait(f"{name} by {index.dtype} on {index.device.type}")
        if any(x.is_cuda for x in (*inputs, *outputs)) and not func.is_view and name not in _NO_KERNEL:
            self.launches[name] += 1
        return out

    def _check_copy(self, name: str, inputs: list, outputs: list, args: Any, kwargs: Any) -> None:
        source, target = (inputs[1], inputs[0]) if name == "copy_" else (inputs[0], outputs[0])
        if source.is_cuda == target.is_cuda:
            return
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        # torch pins the memory of what it copies off the card without waiting.
        is_pinned = getattr(source, "is_fake_pinned", False) if target.is_cuda else name == "_to_copy"
        if waits or not is_pinned:
            self.wait(f"copy of {tuple(source.shape)} from {source.device.type} to {target.device.type}")

    def wait(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/sdpersonal/" in f.filename and "/tests/" not in f.filename]
        place = f"{frames[-1].filename.split('/sdpersonal/')[-1]}:{frames[-1].lineno}" if frames else "?"
        self.waits[f"{what} at {place}"] += 1


class _Attention(torch.autograd.Function):
    """One kernel each way, as on a card; on fake tensors torch would take it apart."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors)


@contextmanager
def fake_card() -> Iterator[Trace]:
    """Make "cuda" a device of fake tensors in the block."""
    trace, make_tensor = Trace(), torch.tensor

    def tensor(data: Any, *args: Any, device: Any = None, **options: Any) -> Tensor:
        made = make_tensor(data, *args, **options)
        if device is not None and torch.device(device).type == "cuda":
            trace.wait("torch.tensor(..., device='cuda')")
            made = made.to(device, non_blocking=True)
        return made

    def pin(self: Tensor, *_: Any) -> Tensor:
        pinned = self.clone()
        pinned.is_fake_pinned = True
        return pinned

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        trace.launches["attention"] += 1
        return _Attention.apply(query, key, value)

    with ExitStack() as stack:
        for holder, name, value in (
            (torch, "tensor", tensor),
            (torch.Tensor, "pin_memory", pin),
            (F, "scaled_dot_product_attention", attention),
            (_foreach_utils, "_foreach_supported_types", [torch.Tensor, torch.nn.Parameter, FakeTensor]),
            *((torch.cuda, name, value) for name, value in _card().items()),
        ):
            stack.enter_context(mock.patch.object(holder, name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(trace)
        yield trace


def _card() -> dict[str, Any]:
    """Return what the project asks of `torch.cuda`."""
    return {
        "Event": mock.MagicMock(name="Event"),
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=80 << 30),
        "is_current_stream_capturing": lambda: False,
        "graph_pool_handle": lambda: (0, 0),
        "device": lambda device: nullcontext(),
    }


def fake_triton(trace: Trace) -> None:
    """Put a package in the place of Triton whose kernels are counted and compute nothing."""

    def jit(function: Callable | None = None, **_: Any) -> Any:
        return _Kernel(function.__name__, trace) if function else jit

    triton, language = ModuleType("triton"), ModuleType("triton.language")
    triton.jit, triton.language, language.constexpr = jit, language, None
    triton.cdiv = lambda a, b: -(-a // b)
    triton.next_power_of_2 = lambda n: 1 << (n - 1).bit_length()
    sys.modules |= {"triton": triton, "triton.language": language}


class _Kernel:
    def __init__(self, name: str, trace: Trace):
        self._name, self._trace = name, trace

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        if not all(0 < size < 1 << 31 for size in grid) or any(size >= 1 << 16 for size in grid[1:]):
            raise ValueError(f"{self._name}: no grid of programs: {grid}")
        return self._launch

    def _launch(self, *args: Any, **options: Any) -> None:
        tensors = [x for x in (*args, *options.values()) if isinstance(x, Tensor)]
        if not all(x.is_cuda for x in tensors):
            raise TypeError(f"{self._name}: a tensor on the CPU")
        self._trace.launches[self._name] += 1
