"""Estimate how long a training takes and how much memory it needs, from earlier trainings on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # psutil ships no types

from .... import storage
from ....config import TrainingSettings
from ....display.units import GB, format_minutes
from ....errors import printable
from ....models.model_info import ModelInfo
from ....training.run_dir import read_json, to_number, to_step
from ..models.hardware import SIZES_BY_KIND

_MAX_STEP_SECONDS, _MAX_MEMORY = 1e6, 1e15  # seconds of a step, bytes
# Seconds of a step with all overhead, until a training was measured here; by (kind, device).
_STEP_SECONDS = {
    ("tiny", "cpu"): 0.4,
    ("tiny", "cuda"): 0.15,
    ("sd1", "cpu"): 90.0,
    ("sd1", "cuda"): 0.8,
    ("sd2", "cpu"): 90.0,
    ("sd2", "cuda"): 0.8,
    ("sdxl", "cpu"): 600.0,
    ("sdxl", "cuda"): 2.0,
}


class MeasuredCosts:
    """Costs of earlier trainings, in a JSON file: {cost_key: {"step": seconds of a step, "held": bytes}}."""

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> dict[str, dict[str, float]]:
        costs = {}
        for key, value in read_json(self._path).items():
            if isinstance(value, dict) and (measured := _to_cost(value.get("step"), value.get("held"))):
                costs[key] = measured
        return costs

    def add(self, settings: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
        """Save what the dry run of a training with these settings measured (its `cost.json`)."""
        steps, seconds = to_step(cost.get("steps")), to_number(cost.get("seconds"))
        if steps and (measured := _to_cost(seconds / steps, cost.get("held"))):
            storage.write_json(self._path, self.read() | {cost_key(settings): measured})


def _to_cost(step: object, held: object) -> dict[str, float]:
    """Return the cost of a step; {} unless both are numbers that a machine can have measured."""
    seconds, memory = to_number(step, _MAX_STEP_SECONDS), to_number(held, _MAX_MEMORY)
    return {"step": seconds, "held": memory} if seconds and memory else {}


def cost_key(settings: Mapping[str, Any]) -> str:
    """Return the key under which the cost of a step is saved."""
    method = settings.get("method") or "textual-inversion"
    return printable(f"{settings.get('base')} {method} {settings.get('resolution') or 'own'}", 200)


def duration_text(steps: int, measured: Mapping[str, float] | None, base: ModelInfo) -> str:
    """Describe the longest time that a training takes; measured: of an earlier one, if there was one."""
    early_stop_note = "It stops earlier if the loss has converged."
    if measured:
        minutes = format_minutes(steps * measured["step"])
        return f"about {minutes}, as measured in the last training here. {early_stop_note}"
    estimate = steps * _STEP_SECONDS[base.kind, base.device]
    return f"roughly {format_minutes(estimate)}: an estimate until the first step was measured. {early_stop_note}"


def memory_text(measured: Mapping[str, float] | None, base: ModelInfo, settings: TrainingSettings, batch: int) -> str:
    """Describe the memory that a training takes, and what is free. batch: photos in a step."""
    needed = measured["held"] / GB if measured else _estimate_memory(base, settings, batch)
    free = free_memory(base.device) / GB
    line = f"It needs about {needed:.1f} GB of memory; {free:.1f} GB are free."
    return line if free > needed else f"{line} That may be too little: close other programs, or choose a smaller model."


def _estimate_memory(base: ModelInfo, settings: TrainingSettings, batch: int) -> float:
    """Estimate the GB that a training takes."""
    method = getattr(settings, "method", "textual-inversion")
    images = batch * (1 if getattr(settings, "prior", "none") == "none" else 2)  # prior preservation adds one a photo
    number, side = 4 if base.device == "cpu" else 2, settings.resolution or base.resolution
    return SIZES_BY_KIND[base.kind].training_memory(number, method, images, side)


def free_memory(device: str) -> int:
    """Return the bytes free for a training. On a GPU that includes the memory of generation, which is released."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return psutil.virtual_memory().available
