"""Define what a replica is sent, and what it answers while it generates."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..image_task import ImageTask


@dataclass(frozen=True)
class Step:
    """So many of the UNet's predictions are done."""

    done: int
    total: int


@dataclass(frozen=True)
class Preview:
    """Small JPEG previews of images that are being generated, by the index of their task."""

    jpegs: Mapping[int, bytes]


@dataclass(frozen=True)
class Made:
    """The image of a task, as PNG with its recipe."""

    index: int
    png: bytes


@dataclass(frozen=True)
class Failed:
    """A task that cannot be done, with a `UserError`'s message and hint."""

    index: int
    message: str
    hint: str = ""


Event = Step | Preview | Made | Failed


class ReplicaLost(Exception):
    """The replica died, or could not be reached: another one can do the work."""


@dataclass(frozen=True)
class PoolHealth:
    """running, starting: replicas; model: facts of the model (`ModelInfo`) as JSON, {} until a replica has run."""

    running: int = 0
    starting: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)


class ReplicaPool(Protocol):
    """The replicas. Ray Serve has the real ones."""

    def health(self) -> PoolHealth: ...

    def slots(self) -> int:
        """Return how many batches may be under way at once."""

    def generate(self, tasks: Sequence[ImageTask]) -> AsyncGenerator[Event, None]:
        """Generate one batch; closing the generator ends the work at its next step. Raises ReplicaLost."""
