"""Packages that diffusers and PEFT import and rarely use: they are imported when something of theirs is first used.

`scipy.stats` serves one spacing of the steps (beta), `scipy.integrate` one scheduler (LMS), and bitsandbytes, which
imports torch's compiler, one optimizer. Together they were a third of the CPU time of `import sdpersonal.models`.

`importlib.util.LazyLoader` does the same, but imports at any attribute, even at `__file__`, which `inspect.getmodule`
asks of every module; and before Python 3.11.9 two threads could see a module in part.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from threading import RLock
from types import ModuleType
from typing import Any

_DEFERRED = ("scipy.stats", "scipy.integrate", "bitsandbytes")


class _DeferredModule(ModuleType):
    """A module whose attributes are those of the real one, which the first of them imports."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._lock = RLock()

    def __getattr__(self, attribute: str) -> Any:
        """Import the module, and return its attribute.

        `__path__` is imported for too: who asks imports a submodule, which may need what its package's import does.
        """
        with self._lock:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            return getattr(importlib.import_module(self.__name__), attribute)


def defer_import(name: str) -> None:
    """Put a module that imports itself at its first use in the place of this one, if it is installed.

    One that is imported already stays as it is.
    """
    if name not in sys.modules and (spec := importlib.util.find_spec(name)):
        module = _DeferredModule(name)
        module.__spec__, module.__file__, module.__loader__ = spec, spec.origin, spec.loader
        sys.modules[name] = module


for _name in _DEFERRED:
    defer_import(_name)
