"""What a run says while it runs: a bar with time left, `progress.jsonl` for whoever polls, a picture of the loss."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from .. import files
from .tracking import NoTrack, Track

FILE = "progress.jsonl"


class Journal:
    """One line of JSON a step, and on a terminal a bar; elsewhere a line of text every tenth of the way.

    Lines are {"step", "steps", "loss", "seconds", "left"}: seconds since this process began training, and how many are
    left by its pace.
    """

    def __init__(self, run: Path, start: int, steps: int, track: Track | None = None, out: TextIO | None = None):
        self._path = run / FILE
        self._start, self._steps = start, steps
        self._track = track or NoTrack()
        self._out = out or sys.stderr
        self._began = time.monotonic()
        self.losses = _keep_until(self._path, start)
        self._bar = _bar(steps, start, self._out)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            with suppress(OSError):  # the terminal is gone
                self._bar.stop()

    def keep(self) -> None:
        """What was written stays, like the checkpoint that is made now."""
        files.sync(self._path)

    def step(self, step: int, loss: float, rates: Sequence[float] = ()) -> None:
        """Step number `step` (from 1) is done, with the learning rate of each group."""
        self.losses.append(loss)
        seconds = time.monotonic() - self._began
        left = seconds / (step - self._start) * (self._steps - step)
        line = {
            "step": step,
            "steps": self._steps,
            "loss": round(loss, 6),
            "seconds": round(seconds, 1),
            "left": round(left, 1),
        }
        files.append_line(self._path, json.dumps(line))
        self._track.log({"loss": loss} | {f"rate/{number}": rate for number, rate in enumerate(rates)}, step)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, loss=_smooth(self.losses))
        elif self._out and (step == self._steps or step % max(1, self._steps // 10) == 0):
            with suppress(OSError, ValueError):
                self._out.write(f"step {step} of {self._steps}, loss {_smooth(self.losses):.4f}, {left:.0f} s left\n")
                self._out.flush()


def while_heard(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, until whoever listened has gone (`| head -1`): no reason to stop a training of hours."""

    def tell(line: str) -> None:
        try:
            say(line)
        except BrokenPipeError:
            # What is left in the buffer must not raise again, now or at exit.
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return tell


def save_loss_curve(path: Path, losses: list[float]) -> None:
    """Every step's loss as a dot, and a running mean, since single losses mostly tell which noise was drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = range(1, len(losses) + 1)
    window = max(5, len(losses) // 15)
    axes.plot(steps, losses, ".", color="#b8c4d6", markersize=3, label="each step")
    axes.plot(steps, _running_mean(losses, window), color="#1f4e96", linewidth=2, label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())


def _running_mean(values: list[float], window: int) -> list[float]:
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def _smooth(losses: list[float], window: int = 30) -> float:
    recent = losses[-window:]
    return math.fsum(recent) / len(recent)


def _keep_until(path: Path, step: int) -> list[float]:
    """Drop what an interrupted run wrote after its last checkpoint; return the losses that stay."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a kill in the middle of a line
                continue
            if isinstance(entry, dict) and entry.get("step", math.inf) <= step:
                kept.append(entry)
    files.write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
    return [float(entry["loss"]) for entry in kept]


def _bar(steps: int, start: int, out: TextIO | None):
    if out is None or not out.isatty():  # None: started with stderr closed
        return None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(file=out))
    bar.add_task("train", total=steps, completed=start, loss=float("nan"))
    bar.start()
    return bar
