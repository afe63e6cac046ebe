"""Running out of memory, in a sentence: how much was needed, how much there is, what to ask less of."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..config import Training
from ..errors import PersonalError

_TRIED = re.compile(r"allocate ([0-9.]+) ?(bytes|[KMG]iB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
GB = 1e9


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine itself, had no room for a tensor."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@dataclass(frozen=True)
class Room:
    """What a run takes room with. side: of its pictures, in pixels; batch: photos at once."""

    device: torch.device
    settings: Training
    side: int
    batch: int

    @contextmanager
    def at(self, where: str, advice: str = "") -> Iterator[None]:
        """Raises PersonalError in place of an out-of-memory error; other errors pass. advice: in place of ours."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # None: the traceback would hold on to the very tensors that there is no room for.
            raise PersonalError(
                f"Out of memory {where}: {self._sizes(str(error))}.", advice or self._advice()
            ) from None

    def check(self, need: int, what: str) -> None:
        """Raises PersonalError if `need` bytes more cannot be had."""
        held, room = use(self.device)
        if held + need > room:
            raise PersonalError(f"No memory for {what}: {_sizes(held + need, room)}.", self._advice())

    def _sizes(self, message: str) -> str:
        tried = _TRIED.search(message)
        wanted = float(tried[1]) * _UNITS[tried[2]] if tried else 0.0
        held, room = use(self.device)
        return _sizes(held + wanted, room)

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


def _sizes(need: float, room: float) -> str:
    return f"needs about {need / GB:.1f} GB, {room / GB:.1f} GB there"


def use(device: torch.device) -> tuple[int, int]:
    """(bytes this process has taken at most, bytes it can have)."""
    if device.type == "cuda":
        return (
            torch.cuda.max_memory_allocated(device),
            torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device),
        )
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
    free = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"  # macOS tells the whole only
    return held, held + os.sysconf(free) * os.sysconf("SC_PAGE_SIZE")
