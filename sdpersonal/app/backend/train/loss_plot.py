"""Plot the loss as a small SVG that takes its colours from the page, so that it is readable in light and dark mode.

It contains only numbers and fixed text: nothing has to be escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

from .run_status import LossPoints

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 440, 170, 4, 22, 8
_MAX_POINTS = 240  # points plotted


def loss_svg(points: LossPoints, steps: int) -> str:
    """Plot a run's losses: a dot for each step, and a line for the fixed batch's losses or else the running mean."""
    if len(points.losses) < 2:
        return ""
    line = points.fixed_batch_losses if len(points.fixed_batch_losses) > 1 else running_mean(points.losses)
    dots, line = thin_points(points.losses), thin_points(line)
    end_step = max(steps, points.losses[-1][0], 2)
    highest = sorted(loss for _, loss in points.losses)[int(0.98 * (len(points.losses) - 1))]
    highest = max(highest, max(loss for _, loss in line)) * 1.05 or 1.0

    def place(step: int, loss: float) -> str:
        x = _LEFT + (_WIDTH - 2 * _LEFT) * step / end_step
        y = _TOP + (_HEIGHT - _BOTTOM - _TOP) * (1 - min(loss / highest, 1.0))
        return f"{x:.1f},{y:.1f}"

    marks = "".join(f"M{place(*point)}h0" for point in dots)
    path = "M" + "L".join(place(*point) for point in line)
    floor, foot = _HEIGHT - _BOTTOM, _HEIGHT - 6
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="curve" '
        f'aria-label="Loss after {points.losses[-1][0]} steps: {line[-1][1]:.3f}, at first {line[0][1]:.3f}">'
        f'<path class="floor" d="M{_LEFT},{floor}H{_WIDTH - _LEFT}"/>'
        f'<path class="dots" d="{marks}"/><path class="line" d="{path}"/>'
        f'<text x="{_LEFT}" y="{foot}">loss (lower is better)</text>'
        f'<text x="{_WIDTH - _LEFT}" y="{foot}" text-anchor="end">step {end_step:,}</text></svg>'
    )


def running_mean(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    window = max(5, len(losses) // 15)
    total, means = 0.0, []
    for i, (step, loss) in enumerate(losses):
        total += loss - (losses[i - window][1] if i >= window else 0.0)
        means.append((step, total / min(i + 1, window)))
    return means


def thin_points(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Thin the points to about `_MAX_POINTS`, keeping the last one."""
    stride = -(-len(points) // _MAX_POINTS)
    return [*points[::stride], *(points[-1:] if (len(points) - 1) % stride else ())]


def progress_html(fraction: float | None) -> str:
    """Make the browser's own progress bar; fraction: 0 to 1, None for an indeterminate bar."""
    value = "" if fraction is None else f' value="{min(max(fraction, 0.0), 1.0):.4f}"'
    return f'<progress aria-label="How far the training is" max="1"{value}></progress>'
