"""Add what workers made to its place, and try again later where that fails, without holding up the workers.

The driver does it. If it dies between an addition and the note of it in the store, the next one adds the same again,
and finds it there: a library knows a concept by its identity, a folder knows an image by its content.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from ..errors import UserError

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between tries


class HasId(Protocol):
    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=HasId)
Added = TypeVar("Added")


@dataclass
class _Waiting(Generic[Item]):
    """An item to add. due: when; pause: seconds to the try after that."""

    item: Item
    due: float = 0.0
    pause: float = field(default_factory=lambda: _FIRST_PAUSE)


class Adder(Generic[Item, Added]):
    """Adds items. add: called in several threads at once; raises UserError where it fails."""

    def __init__(self, add: Callable[[Item], Added]):
        self._add = add
        self._waiting: dict[str, _Waiting[Item]] = {}
        self.last_error: UserError | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add_later(self, item: Item) -> None:
        """Note that an item is in the store."""
        self._waiting.setdefault(item.id, _Waiting(item))

    def add_due(self, threads: Executor) -> list[tuple[Item, Added]]:
        """Add what is due; return what was added."""
        added: list[tuple[Item, Added]] = []
        due = [entry for entry in self._waiting.values() if time.monotonic() >= entry.due]
        for entry, outcome in zip(due, threads.map(self._try_to_add, due), strict=True):
            if isinstance(outcome, UserError):
                self.last_error = outcome
                entry.due, entry.pause = time.monotonic() + entry.pause, min(2 * entry.pause, _LONGEST_PAUSE)
            else:
                added.append((entry.item, outcome))
                del self._waiting[entry.item.id]
                self.last_error = None
        return added

    def _try_to_add(self, entry: _Waiting[Item]) -> Added | UserError:
        try:
            return self._add(entry.item)
        except UserError as error:
            return error
