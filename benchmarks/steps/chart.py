"""Plot the figures of training_step.py."""

from __future__ import annotations

from pathlib import Path

_COLOURS = {"script": "#b8bec8", "sdpersonal": "#2f6fdf"}
_HATCH = {"fp32": None, "bf16": "////"}


def save_chart(report: dict, path: Path) -> None:
    """Plot the seconds of a step, with a panel for each case, since they differ a hundredfold. Bars begin at zero."""
    from matplotlib.figure import Figure

    cases = report["cases"]
    figure = Figure(figsize=(2.4 * len(cases) + 0.6, 3.6), layout="constrained", dpi=110)
    for axes, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        names = list(case["arms"])
        seconds = [case["arms"][name]["seconds"] for name in names]
        bars = axes.bar(range(len(names)), seconds, width=0.75)
        for bar, name, value in zip(bars, names, seconds, strict=True):
            side_name, dtype = name.split()
            bar.set(facecolor=_COLOURS[side_name], hatch=_HATCH[dtype], edgecolor="white")
            times = case["arms"][names[0]]["seconds"] / value
            label = f"{value:.3g} s" + (f"\n{times:.1f}x" if name != names[0] else "")
            axes.annotate(label, (bar.get_x() + bar.get_width() / 2, value), ha="center", va="bottom", fontsize=8)
        base, method, rest = case["case"].split(" ", 2)
        axes.set_title(f"{base}, {method}\n{rest}", fontsize=9)
        axes.set_xticks(range(len(names)), [name.replace("script", "diffusers").replace(" ", "\n") for name in names])
        axes.tick_params(axis="x", labelsize=7, length=0)
        axes.set_ylim(0, max(seconds) * 1.2)
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    clock = "Seconds" if cases[0].get("clock") == "wall" else "Processor's seconds"
    figure.suptitle(f"{clock} a training step: diffusers' example scripts and sdpersonal", fontsize=10)
    figure.savefig(path, metadata={"Software": None})
