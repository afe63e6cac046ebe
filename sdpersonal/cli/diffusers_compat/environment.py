"""What a translation has to know of the machine, as functions, so that it can be tested without one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Surroundings:
    """processes: how many train together; photos: how many files of a folder may be photos (raises PersonalError if
    it cannot be read); saved: whether a run's folder has a checkpoint."""

    processes: int
    photos: Callable[[str], int]
    saved: Callable[[str], bool]


def here() -> Surroundings:
    """This process's own."""
    world = os.environ.get("WORLD_SIZE", "1")  # set by accelerate launch and torchrun
    return Surroundings(int(world) if world.isdecimal() else 1, _photos, _saved)


def _photos(folder: str) -> int:
    from ...photos.loading import count_photos

    return count_photos(Path(folder))


def _saved(run: str) -> bool:
    return any(Path(run).glob("step-*/manifest.json"))
