"""Plot a run: its losses, the values of the stopping rule, and the validation scores."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from .. import storage
from .early_stopping import DVAR_THRESHOLD, dvar
from .validation import Validation, best_validation

CURVES_FILE = "loss.png"
_DOTS, _LINE, _SECOND, _MARK = "#b8c4d6", "#1f4e96", "#c2571a", "#2c7a3f"


def save_curves(
    path: Path,
    losses: list[float],
    measured: list[tuple[int, float]],
    validations: Sequence[Validation],
    pivot: int = 0,
) -> None:
    """Save the plot. losses: from step 1; measured: (step, loss) of the fixed batch. Empty panels are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shares = [(point.step, point.variance_ratio) for point in dvar(measured, pivot)]
    scored = [validation for validation in validations if validation.scores]
    panels = [_plot_loss] + [_plot_variance_ratio] * bool(shares) + [_plot_scores] * bool(scored)
    figure = Figure(figsize=(7, 0.7 + 2.3 * len(panels)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    data = {_plot_loss: (losses, measured), _plot_variance_ratio: (shares,), _plot_scores: (scored,)}
    for axes, panel in zip(all_axes, panels, strict=True):
        panel(axes, *data[panel])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    all_axes[-1].set_xlabel("step")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    storage.write_bytes(path, buffer.getvalue())


def _plot_loss(axes, losses: list[float], measured: list[tuple[int, float]]) -> None:
    """Plot each step's loss as a dot, since single losses mostly depend on the sampled noise."""
    steps, window = range(1, len(losses) + 1), max(5, len(losses) // 15)
    axes.plot(steps, losses, ".", color=_DOTS, markersize=3, label="each step")
    if measured:
        axes.plot(*zip(*measured, strict=True), color=_LINE, linewidth=2, label="the fixed batch")
    else:
        axes.plot(steps, _running_mean(losses, window), color=_LINE, linewidth=2, label=f"mean of {window} steps")
    axes.set(ylabel="loss", ylim=(0, None))


def _plot_variance_ratio(axes, shares: list[tuple[int, float]]) -> None:
    axes.plot(*zip(*shares, strict=True), color=_LINE, linewidth=2, label="what the fixed batch still moves")
    axes.axhline(
        DVAR_THRESHOLD, color=_SECOND, linestyle="--", linewidth=1, label=f"below {DVAR_THRESHOLD:g}: no more to learn"
    )
    axes.set(ylabel="share of variance", ylim=(0, None))


def _plot_scores(axes, validations: list[Validation]) -> None:
    steps, best = [trial.step for trial in validations], best_validation(validations)
    axes.plot(steps, [trial.scores.score for trial in validations], "o-", color=_LINE, linewidth=2, label="score")
    axes.plot(steps, [trial.scores.likeness for trial in validations], ".--", color=_DOTS, label="likeness")
    axes.plot(steps, [trial.scores.fidelity for trial in validations], ".:", color=_SECOND, label="prompts followed")
    axes.axvline(best.step, color=_MARK, linewidth=1, label=f"kept: step {best.step}")
    axes.set(ylabel="acceptance", ylim=(0, 1.05))


def _running_mean(values: list[float], window: int) -> list[float]:
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means
