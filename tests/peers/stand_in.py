"""Other programs import more than is installed here. What is missing, of third parties only, is stood in for."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path

STOOD_IN: set[str] = set()
_HARDWARE = {
    "torch_npu",
    "torch_mlu",
    "torch_xla",
    "intel_extension_for_pytorch",
    "nvidia",
    "xformers",
    "habana_frameworks",
}


class _Kind(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _thing(name)

    def __call__(cls, *args, **kwargs):
        if cls.__module__ == __name__ and len(args) == 1 and not kwargs and callable(args[0]):
            return args[0]  # used as a decorator
        return super().__call__(*args, **kwargs)

    def __getitem__(cls, key):
        return _thing("item")

    def __setitem__(cls, key, value):
        pass

    def __iter__(cls):
        return iter(())

    def __or__(cls, other):
        return cls

    __ror__ = __or__


class Anything(metaclass=_Kind):
    """A class, a function, a decorator or a constant: whatever the importing module takes it for."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _thing(name)

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) else Anything()

    def __class_getitem__(cls, item):
        return cls


def _thing(name: str) -> type:
    return _Kind(name, (Anything,), {"__module__": __name__})


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _thing(name)


class _Finder:
    """Asked last, for what nobody else finds; it answers only imports that stand in the program's own files."""

    def __init__(self, checkout: Path, instead: tuple[str, ...] = ()):
        self.checkout = str(checkout)
        self.own = {path.name.removesuffix(".py") for path in checkout.iterdir()}
        self.instead = instead

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in _HARDWARE:  # asked only whether it is there
            return None
        if self.instead:
            wanted = top in self.instead
        else:
            wanted = top in STOOD_IN or (top not in self.own and "." not in name and self._asked_by_the_program())
        if not wanted:
            return None
        STOOD_IN.add(top)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def _asked_by_the_program(self) -> bool:
        frame = sys._getframe(2)
        while frame and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        return bool(frame) and frame.f_code.co_filename.startswith(self.checkout)

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def use(checkout: str, *instead: str) -> None:
    """Import from a checkout of the program. instead: packages that are installed in a version it cannot use."""
    path = Path(checkout).resolve()
    sys.path.insert(0, str(path))
    if instead:
        sys.meta_path.insert(0, _Finder(path, instead))
    sys.meta_path.append(_Finder(path))
