"""What a translation needs to know of the machine, as functions, so that tests can replace them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """Facts of the machine. processes: how many train together; photos: counts a folder's files that may be photos
    (raises UserError if it cannot be read); saved: whether a run's folder has a checkpoint."""

    processes: int
    count_photos: Callable[[str], int]
    has_checkpoint: Callable[[str], bool]


def current_environment() -> Environment:
    """Return the environment of this process."""
    world = os.environ.get("WORLD_SIZE", "1")  # set by accelerate launch and torchrun
    return Environment(int(world) if world.isdecimal() else 1, _count_photos, _has_checkpoint)


def _count_photos(folder: str) -> int:
    from ...photos.loading import count_photos

    return count_photos(Path(folder))


def _has_checkpoint(run: str) -> bool:
    from ...training.run_dir import has_checkpoint

    return has_checkpoint(Path(run))
