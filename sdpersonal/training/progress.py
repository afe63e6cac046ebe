"""What a run says while it runs: a bar with time left, `progress.jsonl` for whoever polls, a picture of the loss."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from pathlib import Path
from typing import TextIO

from .. import files

FILE = "progress.jsonl"


class Journal:
    """One line of JSON a step, and on a terminal a bar; elsewhere a line of text every tenth of the way.

    Lines are {"step", "steps", "loss", "seconds", "left"}: seconds since this process began training, and how many are
    left by its pace.
    """

    def __init__(self, run: Path, start: int, steps: int, out: TextIO | None = None):
        self._path = run / FILE
        self._start, self._steps = start, steps
        self._out = out or sys.stderr
        self._began = time.monotonic()
        self.losses = _keep_until(self._path, start)
        self._bar = _bar(steps, start, self._out)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, loss: float) -> None:
        """Step number `step` (from 1) is done."""
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
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, loss=_smooth(self.losses))
        elif step == self._steps or step % max(1, self._steps // 10) == 0:
            self._out.write(f"step {step} of {self._steps}, loss {_smooth(self.losses):.4f}, {left:.0f} s left\n")
            self._out.flush()


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


def _bar(steps: int, start: int, out: TextIO):
    if not out.isatty():
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
