"""Running out of memory: how it is known, what is said of it, and how what it held is let go."""

from __future__ import annotations

import gc
import os
import re
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import OutOfMemory

_REQUESTED = re.compile(r"allocate ([0-9.]+) ?(bytes|[KMG]iB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
GB = 1e9


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine itself, had no room for a tensor."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def requested_bytes(error: BaseException) -> int:
    """Bytes of the tensor that there was no room for; 0 where the error does not say."""
    found = _REQUESTED.search(str(error))
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def describe_memory(need: float, room: float) -> str:
    return f"needs about {need / GB:.1f} GB, {room / GB:.1f} GB there"


def memory_usage(device: torch.device) -> tuple[int, int]:
    """(bytes this process has taken at most, bytes it can have)."""
    if device.type == "cuda":
        return (
            torch.cuda.max_memory_allocated(device),
            torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device),
        )
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
    free = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"  # macOS tells the whole only
    return held, held + os.sysconf(free) * os.sysconf("SC_PAGE_SIZE")


def drop_traceback(error: BaseException, device: torch.device) -> None:
    """Free what an out-of-memory error's traceback holds: the very tensors that there was no room beside."""
    # Not `from None`: an error raised in its place still has it as its context, frames and all.
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
    if device.type == "cuda":
        torch.cuda.empty_cache()


def empty_cache() -> None:
    """What nothing refers to any more goes back to the system, the card's memory too: another process may need it."""
    gc.collect()  # modules refer to each other in circles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def translate_oom(what: str, fix: str, device: torch.device) -> Iterator[None]:
    """Raises OutOfMemory in place of an out-of-memory error; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        held, room = memory_usage(device)
        said = describe_memory(held + requested_bytes(error), room)
        drop_traceback(error, device)
        raise OutOfMemory(f"Out of memory {what}: {said}.", fix) from None
