"""Plot a run: its losses, the values of the stopping rule, and the validation scores."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import storage
from ..evaluation import ConceptScores
from .early_stopping import DVAR_THRESHOLD, dvar
from .validation import Validation, best_validation, out_of_domain, scored

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    panels: list[Callable[[Axes], None]] = [partial(_plot_loss, losses=losses, measured=measured)]
    if shares:
        panels.append(partial(_plot_variance_ratio, shares=shares))
    if (best := best_validation(validations)) and not out_of_domain(validations):
        panels.append(partial(_plot_scores, scores=scored(validations), best_step=best.step))
    figure = Figure(figsize=(7, 0.7 + 2.3 * len(panels)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, plot in zip(all_axes, panels, strict=True):
        plot(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    all_axes[-1].set_xlabel("step")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    storage.write_bytes(path, buffer.getvalue())


def _plot_loss(axes: Axes, losses: list[float], measured: list[tuple[int, float]]) -> None:
    """Plot each step's loss as a dot, since single losses mostly depend on the sampled noise."""
    steps, window = range(1, len(losses) + 1), max(5, len(losses) // 15)
    axes.plot(steps, losses, ".", color=_DOTS, markersize=3, label="each step")
    if measured:
        axes.plot(*zip(*measured, strict=True), color=_LINE, linewidth=2, label="the fixed batch")
    else:
        axes.plot(steps, _running_mean(losses, window), color=_LINE, linewidth=2, label=f"mean of {window} steps")
    axes.set(ylabel="loss", ylim=(0, None))


def _plot_variance_ratio(axes: Axes, shares: list[tuple[int, float]]) -> None:
    axes.plot(*zip(*shares, strict=True), color=_LINE, linewidth=2, label="variance of the last losses / of all")
    axes.axhline(
        DVAR_THRESHOLD, color=_SECOND, linestyle="--", linewidth=1, label=f"below {DVAR_THRESHOLD:g}: converged"
    )
    axes.set(ylabel="share of variance", ylim=(0, None))


def _plot_scores(axes: Axes, scores: Sequence[tuple[int, ConceptScores]], best_step: int) -> None:
    steps = [step for step, _ in scores]
    axes.plot(steps, [values.score for _, values in scores], "o-", color=_LINE, linewidth=2, label="score")
    axes.plot(steps, [values.likeness for _, values in scores], ".--", color=_DOTS, label="likeness")
    axes.plot(steps, [values.fidelity for _, values in scores], ".:", color=_SECOND, label="prompts followed")
    axes.axvline(best_step, color=_MARK, linewidth=1, label=f"best: step {best_step}")
    axes.set(ylabel="score", ylim=(0, 1.05))


def _running_mean(values: list[float], window: int) -> list[float]:
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means
