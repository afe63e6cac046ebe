"""What the trainings share: progress, checkpoints that survive a kill, moving averages, a log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .worker_group import SYNC_EVERY, WorkerGroup

if TYPE_CHECKING:
    from .presets import Stage

LONGEST_STEP = 20  # seconds; what is above it was not training: the machine slept, or the process was held up


@dataclass(frozen=True)
class Machine:
    """Where a training runs."""

    device: str = "cpu"
    bf16: bool = True
    workers: int = 0  # processes that draw scenes ahead; 0 draws them in the training's own
    save_minutes: float = 4.0


class Part(Protocol):
    """What a checkpoint holds: a model, an optimizer, an average."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Run:
    """One training's folder: state.pt (newest checkpoint, replaced in one move), log.jsonl, done.

    `parts` are named objects with state_dict and load_state_dict. Progress goes from 0 to 1 by steps or
    by minutes, whichever is ahead, so one recipe serves a slow machine and a fast one.
    """

    def __init__(
        self,
        folder: Path,
        stage: Stage,
        parts: Mapping[str, Part],
        save_minutes: float = 4.0,
        workers: WorkerGroup | None = None,
    ):
        self.folder, self.stage, self.parts, self.save_minutes = folder, stage, parts, save_minutes
        self.workers = workers or WorkerGroup()
        folder.mkdir(parents=True, exist_ok=True)
        self.step, self.minutes = 0, 0.0  # minutes of training so far, over all sittings
        self.saved = time.monotonic()
        if self.state_file.exists():
            self._load()

    @property
    def state_file(self) -> Path:
        return self.folder / "state.pt"

    @property
    def done(self) -> bool:
        return (self.folder / "done").exists()

    @property
    def progress(self) -> float:
        return min(1.0, max(self.step / self.stage.steps, self.minutes / self.stage.minutes))

    def steps(self) -> Iterator[int]:
        """Step numbers until the end; the state is saved every few minutes and at the end."""
        while True:
            if self.workers.size == 1 or self.step % SYNC_EVERY == 0:  # all workers end together
                self.minutes = self.workers.largest(self.minutes)
                if self.progress >= 1:
                    break
            began = time.monotonic()
            yield self.step
            self.minutes += min(time.monotonic() - began, LONGEST_STEP) / 60
            self.step += 1
            if time.monotonic() - self.saved > 60 * self.save_minutes:
                self.save()
        self.save()
        (self.folder / "done").touch()

    def save(self) -> None:
        """Checkpoint: written beside, then moved over the old one. Only rank 0 writes it."""
        self.saved = time.monotonic()
        if self.workers.rank:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        part = self.state_file.with_suffix(".part")
        torch.save({"step": self.step, "minutes": self.minutes, "parts": state}, part)
        part.replace(self.state_file)

    def _load(self) -> None:
        state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        self.step, self.minutes = state["step"], state["minutes"]
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.log(event="resumed")

    def log(self, **figures: float | str) -> None:
        """One JSON line to the log and the screen."""
        if self.workers.rank:
            return
        row = {"step": self.step, "minutes": round(self.minutes, 2)}
        row |= {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(self.folder.name, row, flush=True)


def lr_factor(progress: float, step: int, warmup: int = 100, fall: float = 0.5, last: float = 0.02) -> float:
    """Rise over `warmup` steps, stay, fall in a straight line to `last` over the final part `fall`."""
    rise = min(1.0, (step + 1) / warmup)
    return rise * max(last, min(1.0, (1 - progress) / fall))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class Average:
    """Exponential moving average of a model's parameters; its memory grows with the run up to `longest` steps."""

    def __init__(self, model: torch.nn.Module, longest: int = 2000):
        self.longest, self.count = longest, 0
        self.shadow = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        self.count += 1
        keep = 1 - 1 / min(self.longest, 1 + self.count / 10)
        averages, values = [], []
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.shadow[key])
                values.append(value)
        torch._foreach_lerp_(averages, values, 1 - keep)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        for key, value in state["shadow"].items():
            self.shadow[key].copy_(value)


def autocast(machine: Machine) -> torch.autocast:
    """bf16 arithmetic, on CPU and on CUDA alike."""
    return torch.autocast(torch.device(machine.device).type, torch.bfloat16, enabled=machine.bf16)
