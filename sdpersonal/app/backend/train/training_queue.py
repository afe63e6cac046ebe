"""The line of trainings that wait for the machine: each has its place in its `process.json`, so that the line outlives
the app. Of all users' trainings the one that has waited longest is next."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....display.units import format_minutes
from ....errors import UserError
from ....training.run_dir import RESULT_FILE, to_number
from .run_folders import PROCESS_FILE, SETTINGS_FILE, parse_process, read_run_json, write_process
from .run_status import format_start
from .trainer_process import NO_PROCESS

MAX_WAITING = 20  # trainings of a user
_MIN_GAP = 1e-3  # between the places of two trainings, which are seconds since 1970


@dataclass(frozen=True)
class RunningTraining:
    """A running training. is_own: whether it belongs to the asking user; left: seconds, None if not known yet."""

    is_own: bool
    began: float
    left: float | None

    def message(self) -> str:
        """Tell a user that the machine is busy; a training that is started now waits."""
        who = "You are already training" if self.is_own else "Another user is training"
        left = f", for about {format_minutes(self.left)} more" if self.left is not None else ""
        return f"{who}, since {format_start(self.began)}{left}: this one waits in line."


def waiting_runs(folders: Iterable[Path]) -> list[Path]:
    """Return the runs among these folders that wait, in the order in which they start."""
    return sorted((folder for folder in folders if _place(folder)), key=lambda folder: (_place(folder), folder))


def next_place(folders: Iterable[Path]) -> float:
    """Return the place behind all that wait; it grows also if the clock was set back."""
    return max([time.time(), *(_place(folder) + _MIN_GAP for folder in folders)])


def move_waiting(waiting: Sequence[Path], run: str, before: str | None) -> None:
    """Move a run before another one of the same user, or behind all of them. Only the user's own places are exchanged,
    so nobody else waits longer. waiting: the user's, in their order. Raises UserError."""
    names = [folder.name for folder in waiting]
    if run not in names or (before is not None and before not in names):
        raise UserError("That training does not wait any more.")
    if run == before:
        return
    places = [_place(folder) for folder in waiting]
    moved = waiting[names.index(run)]
    others = [folder for folder in waiting if folder != moved]
    index = len(others) if before is None else [folder.name for folder in others].index(before)
    ordered = [*others[:index], moved, *others[index:]]
    for folder, place in zip(ordered, places, strict=True):
        if _place(folder) != place:
            write_process(
                folder, NO_PROCESS, began=to_number(read_run_json(folder / PROCESS_FILE).get("began")), queued=place
            )


def _place(folder: Path) -> float:
    """Return a run's place in the line; 0 if it does not wait."""
    info = read_run_json(folder / PROCESS_FILE)
    place = to_number(info.get("queued"))
    if not place or read_run_json(folder / RESULT_FILE) or not read_run_json(folder / SETTINGS_FILE):
        return 0.0
    return 0.0 if parse_process(info).is_alive() else place
