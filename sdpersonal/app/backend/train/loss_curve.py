"""The curve of a run's loss as numbers, few enough for a page."""

from __future__ import annotations

from collections.abc import Sequence

from .run_progress import LossPoints

_MAX_POINTS = 400  # of each line


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
    """Thin the points to about `_MAX_POINTS`, keeping the last one; losses have four digits."""
    stride = max(1, -(-len(points) // _MAX_POINTS))
    thinned = [*points[::stride], *(points[-1:] if points and (len(points) - 1) % stride else ())]
    return [(step, float(f"{loss:.4g}")) for step, loss in thinned]
