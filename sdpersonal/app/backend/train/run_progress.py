"""Read a run's `progress.jsonl` while it grows, and make a curve of its losses, short enough for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .... import storage
from ....errors import UserError
from ....training.run_dir import parse_progress

_LINES = 64 << 20  # bytes read at most; the log of 100,000 steps has 10 MB
_MAX_POINTS = 200_000  # more than a run may have steps
_MAX_CURVE_POINTS = 400  # of each line


@dataclass(frozen=True)
class LossPoints:
    """Losses of the steps as (step, loss); fixed_batch_losses: those of the fixed batch."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    fixed_batch_losses: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class ProgressReader:
    """Incremental reader of a run's `progress.jsonl`; `offset`: bytes read so far."""

    path: Path
    offset: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    points: LossPoints = field(default_factory=LossPoints)

    def update(self) -> None:
        try:
            with storage.open_to_read(self.path) as file:
                size = file.seek(0, 2)
                if size > _LINES:  # no log of ours
                    return
                if size < self.offset:  # a resumed run truncates the file to its checkpoint
                    self.offset, self.last, self.points = 0, {}, LossPoints()
                file.seek(self.offset)
                data = file.read(_LINES)
        except UserError:
            return
        complete_lines = data[: data.rfind(b"\n") + 1]
        self.offset += len(complete_lines)
        for line in complete_lines.splitlines():
            self._add_line(line)

    def _add_line(self, line: bytes) -> None:
        entry = parse_progress(line)
        if entry is None or len(self.points.losses) >= _MAX_POINTS:
            return
        self.last = entry
        self.points.losses.append((entry["step"], entry["loss"]))
        if "fixed" in entry:
            self.points.fixed_batch_losses.append((entry["step"], entry["fixed"]))


def loss_curve(points: LossPoints) -> dict[str, list[tuple[int, float]]]:
    """Return `points`, the losses of steps, and `average`: the fixed batch's losses, or else the running mean."""
    average = points.fixed_batch_losses if len(points.fixed_batch_losses) > 1 else running_mean(points.losses)
    return {"points": thin_points(points.losses), "average": thin_points(average)}


def running_mean(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    window = max(5, len(losses) // 15)
    total, means = 0.0, []
    for i, (step, loss) in enumerate(losses):
        total += loss - (losses[i - window][1] if i >= window else 0.0)
        means.append((step, total / min(i + 1, window)))
    return means


def thin_points(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Thin the points to about `_MAX_CURVE_POINTS`, keeping the last one; losses have four digits."""
    stride = max(1, -(-len(points) // _MAX_CURVE_POINTS))
    thinned = [*points[::stride], *(points[-1:] if points and (len(points) - 1) % stride else ())]
    return [(step, float(f"{loss:.4g}")) for step, loss in thinned]
