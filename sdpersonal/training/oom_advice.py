"""Turn out-of-memory errors into advice: how much was needed, how much there is, what to reduce."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..config import TrainingSettings
from ..errors import UserError
from ..models.oom import describe_memory, memory_usage, translate_oom


@dataclass(frozen=True)
class OomAdvice:
    """The settings that determine a run's memory. resolution: in pixels; batch: batch size per device."""

    device: torch.device
    settings: TrainingSettings
    resolution: int
    batch: int

    @contextmanager
    def translate(self, where: str, advice: str = "") -> Iterator[None]:
        """Translate an out-of-memory error into OutOfMemory; others pass. advice: replaces the default one."""
        with translate_oom(where, advice or self._advice(), self.device):
            yield

    def require(self, bytes_needed: int, what: str) -> None:
        """Raise UserError unless so many more bytes are available. what: they are for."""
        used, available = memory_usage(self.device)
        if used + bytes_needed > available:
            raise UserError(
                f"Not enough memory for {what}: {describe_memory(used + bytes_needed, available)}.", self._advice()
            )

    def _advice(self) -> str:
        settings, full = self.settings, getattr(self.settings, "method", None) == "full"
        remedies: list[str | bool] = [
            not settings.checkpointing and "--checkpointing 1",
            self.batch > 1 and f"--batch 1 --accumulate {min(64, self.batch * settings.accumulate)}",
            full and settings.optimizer == "adamw" and "--optimizer adamw8bit",
            full and "--method lora",
            self.resolution >= 128 and f"--resolution {self.resolution * 3 // 4 // 64 * 64}",
        ]
        advice = ", ".join(str(remedy) for remedy in remedies if remedy) or "a smaller --base"
        return f"Try {advice}. Checkpoints are not affected."
