"""Running out of memory, in a sentence: how much was needed, how much there is, what to ask less of."""

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
    """What a run takes room with. side: of its pictures, in pixels; batch: photos at once."""

    device: torch.device
    settings: TrainingSettings
    side: int
    batch: int

    @contextmanager
    def at(self, where: str, advice: str = "") -> Iterator[None]:
        """Raises OutOfMemory in place of an out-of-memory error; other errors pass. advice: in place of ours."""
        with translate_oom(where, advice or self._advice(), self.device):
            yield

    def check(self, need: int, what: str) -> None:
        """Raises UserError if `need` bytes more cannot be had."""
        held, room = memory_usage(self.device)
        if held + need > room:
            raise UserError(f"No memory for {what}: {describe_memory(held + need, room)}.", self._advice())

    def _advice(self) -> str:
        settings, full = self.settings, getattr(self.settings, "method", None) == "full"
        ways = [
            not settings.checkpointing and "--checkpointing 1",
            self.batch > 1 and f"--batch 1 --accumulate {min(64, self.batch * settings.accumulate)}",
            full and settings.optimizer == "adamw" and "--optimizer adamw8bit",
            full and "--method lora",
            self.side >= 128 and f"--resolution {self.side * 3 // 4 // 64 * 64}",
        ]
        return f"Try {', '.join(filter(None, ways)) or 'a smaller base'}. Checkpoints are as they were."
