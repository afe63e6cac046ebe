"""Import packages that diffusers and PEFT rarely use when something of theirs is first used.

`scipy.stats` serves one spacing of the steps (beta), `scipy.integrate` one scheduler (LMS), and bitsandbytes, which
imports torch's compiler, one optimizer. Imported first, they made `import sdpersonal.training.run` take 8.7 and 9.0 s
of CPU time instead of 6.8 and 7.2 s (`time.process_time()`, two runs on a busy machine of two cores, 2026-11-29).

`importlib.util.LazyLoader` leaves its module in `sys.modules`, where a program that imports this one gets it too.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from threading import Lock
from types import ModuleType
from typing import Any

RARELY_USED = ("scipy.stats", "scipy.integrate", "bitsandbytes")


class _DeferredModule(ModuleType):
    """A module whose attributes are those of the real one, which the first of them imports.

    It has a spec and a file of its own: `inspect.getmodule` asks every module for its file.
    """

    def __init__(self, name: str, spec: ModuleSpec) -> None:
        super().__init__(name)
        self.__spec__, self.__file__, self.__loader__ = spec, spec.origin, spec.loader
        self._lock = Lock()

    def __getattr__(self, attribute: str) -> Any:
        self.leave_sys_modules()
        return getattr(importlib.import_module(self.__name__), attribute)

    def leave_sys_modules(self) -> None:
        with self._lock:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]


@contextmanager
def deferred_imports(*names: str) -> Iterator[None]:
    """Let what is imported in this context import these packages at their first use.

    Only names that such a module binds to the packages are deferred: after the context `sys.modules` has none of them,
    so every other module, before and after, gets the real ones. A package that is imported already, or is not
    installed, stays as it is.
    """
    specs = {name: importlib.util.find_spec(name) for name in names if name not in sys.modules}
    deferred = {name: _DeferredModule(name, spec) for name, spec in specs.items() if spec}
    sys.modules.update(deferred)
    try:
        yield
    finally:
        for module in deferred.values():
            module.leave_sys_modules()
