"""Train a concept from photos: `train(settings)` adds it to the library."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .joint import train_together
    from .run import train
    from .train_result import TrainResult

__all__ = ["TrainResult", "train", "train_together"]


def __getattr__(name: str) -> object:
    # Imported lazily, so that looking into a run folder (run_dir.py) does not load torch.
    if name in __all__:
        module = import_module(".joint" if name == "train_together" else ".run", __name__)
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
