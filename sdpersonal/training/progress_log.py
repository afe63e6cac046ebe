"""Report the progress of a run: to a callback or as a bar, and in `progress.jsonl` for other programs."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from .. import storage
from ..display.progress import SMOOTHING, OnProgress, Progress, ProgressBar
from .run_dir import PROGRESS_FILE, read_progress
from .trackers import NullTracker, Tracker


class ProgressLog:
    """Writes a JSON line a step, and a bar on a terminal, elsewhere a line of text every tenth of the steps.

    on_progress is called in place of both, if given.

    Lines are {"step", "steps", "loss", "seconds", "left"}: seconds since this process began training, and seconds
    left at its pace; "fixed" is added where the fixed batch was measured.
    """

    def __init__(
        self,
        run: Path,
        start: int,
        steps: int,
        tracker: Tracker | None = None,
        out: TextIO | None = None,
        on_progress: OnProgress | None = None,
    ):
        self._path = run / PROGRESS_FILE
        self._start, self._steps = start, steps
        self._tracker = tracker or NullTracker()
        self._out = out or sys.stderr
        self._started_at = time.monotonic()
        entries = _truncate_after(self._path, start)
        self.losses = [entry["loss"] for entry in entries]
        self.fixed_batch_losses = [(entry["step"], entry["fixed"]) for entry in entries if "fixed" in entry]
        self._bar = ProgressBar("training", on_progress, quiet=on_progress is not None, transient=False, out=self._out)
        self._has_text = on_progress is None and not self._bar.shown

    def __enter__(self) -> ProgressLog:
        return self

    def __exit__(self, *_) -> None:
        self._bar.__exit__()

    def flush(self) -> None:
        """Sync the log to disk, so that it is as durable as the checkpoint that follows."""
        storage.sync(self._path)

    def step(self, step: int, loss: float, rates: Sequence[float] = (), fixed: float | None = None) -> None:
        """Log step `step` (from 1) with the learning rate of each group and the fixed batch's loss."""
        self.losses.append(loss)
        seconds = time.monotonic() - self._started_at
        left = seconds / (step - self._start) * (self._steps - step)
        line: dict[str, float] = {
            "step": step,
            "steps": self._steps,
            "loss": round(loss, 6),
            "seconds": round(seconds, 1),
            "left": round(left, 1),
        }
        if fixed is not None and math.isfinite(fixed):
            line["fixed"] = round(fixed, 6)
            self.fixed_batch_losses.append((step, line["fixed"]))  # rounded, as a resumed run will read it
        storage.append_line(self._path, json.dumps(line))
        numbers = {"loss": loss} | ({} if fixed is None else {"loss/fixed": fixed})
        self._tracker.log(numbers | {f"rate/{number}": rate for number, rate in enumerate(rates)}, step)
        self._bar.show(Progress(step, self._steps, left, loss))
        if self._has_text and self._out and (step == self._steps or step % max(1, self._steps // 10) == 0):
            with suppress(OSError, ValueError):
                self._out.write(
                    f"step {step} of {self._steps}, loss {_smooth_loss(self.losses):.4f}, {left:.0f} s left\n"
                )
                self._out.flush()


def ignore_broken_pipe(say: Callable[[str], None]) -> Callable[[str], None]:
    """Wrap `say` to ignore a closed pipe (`| head -1`): it is no reason to stop a training of hours."""

    def say_or_ignore(line: str) -> None:
        try:
            say(line)
        except BrokenPipeError:
            # The rest of the buffer must not raise again, now or at exit.
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return say_or_ignore


def _smooth_loss(losses: list[float]) -> float:
    recent = losses[-SMOOTHING:]
    return math.fsum(recent) / len(recent)


def _truncate_after(path: Path, step: int) -> list[dict]:
    """Drop the lines that an interrupted run wrote after its last checkpoint, and damaged ones; return the others."""
    entries = [entry for entry in read_progress(path) if entry["step"] <= step]
    storage.write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))
    return entries
