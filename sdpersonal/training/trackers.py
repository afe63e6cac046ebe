"""Log a run's loss and learning rates to TensorBoard (in the run folder) or Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from accelerate.tracking import (  # type: ignore[import-untyped]  # the package has no type information
    GeneralTracker,
    TensorBoardTracker,
    WandBTracker,
)

from ..errors import UserError

PROJECT = "sdpersonal"


class Tracker(Protocol):
    """Logs the numbers of a step."""

    def log(self, values: dict[str, float], step: int) -> None: ...


class NullTracker:
    """Logs nothing: without --report-to, and in every process but the main one."""

    def log(self, values: dict[str, float], step: int) -> None:
        pass


def check_tracker_installed(report_to: str | None) -> None:
    """Raise UserError if the tracker's package is missing, before anything is loaded."""
    if report_to and importlib.util.find_spec(report_to) is None:
        raise UserError(
            f"--report-to {report_to} needs the package {report_to}, which is not installed.",
            f"pip install 'sdpersonal[{report_to}]', or leave --report-to out.",
        )


@contextmanager
def open_tracker(report_to: str | None, run: Path, facts: dict[str, float]) -> Iterator[Tracker]:
    """Open a tracker in the main process. facts: numbers about the run; no name, path or photo is ever sent."""
    if report_to is None:
        yield NullTracker()
        return
    tracker: GeneralTracker
    tracker = TensorBoardTracker("tensorboard", run) if report_to == "tensorboard" else WandBTracker(PROJECT)
    tracker.start()
    tracker.store_init_configuration(facts)
    try:
        yield tracker
    finally:
        tracker.finish()
