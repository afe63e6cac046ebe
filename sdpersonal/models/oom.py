"""Recognise out-of-memory errors, describe them, and release the memory that they hold."""

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

from ..display.units import GB
from ..errors import OutOfMemory

# What torch raises beside OutOfMemoryError: for tensors on the CPU; for pinned memory, CUDA graphs and whatever else
# asks the driver itself (an AcceleratorError); for the workspaces of cuBLAS, cuDNN, cuSOLVER and cuFFT, for example
# CUBLAS_STATUS_ALLOC_FAILED or CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED; where cuDNN has tried all its
# convolutions and found room for none (pytorch/pytorch#108645); and in NCCL.
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|CUDA (driver )?error: out of memory|CUDA failure (\d+ )?'out of memory'"
    r"|\bCU[A-Z]+_\w*ALLOC(ATION)?_FAILED\b|unable to find an engine to execute this computation",
    re.IGNORECASE,
)
_REQUESTED = re.compile(r"allocate ([0-9.]+) ?(bytes|[KMG]iB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error means that a device, or the machine itself, could not allocate memory.

    An error that was raised while one of these was handled counts too: the capture of a CUDA graph that is interrupted
    ends with an error of its own.
    """
    return any(
        isinstance(link, torch.OutOfMemoryError | MemoryError)
        or (isinstance(link, RuntimeError) and _OUT_OF_MEMORY.search(str(link)) is not None)
        for link in _chain(error)
    )


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those in whose handling it was raised, the last first."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def requested_bytes(error: BaseException) -> int:
    """Return the bytes of the tensor that could not be allocated; 0 if the error does not say."""
    match = _REQUESTED.search(str(error))
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0


def describe_memory(bytes_needed: float, available: float) -> str:
    return f"needs about {bytes_needed / GB:.1f} GB, {available / GB:.1f} GB there"


def memory_usage(device: torch.device) -> tuple[int, int]:
    """Return (peak bytes that this process used, bytes that it can have)."""
    if device.type == "cuda":
        return (
            torch.cuda.max_memory_allocated(device),
            torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device),
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
    free = (
        "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    )  # macOS reports only the total
    return peak, peak + os.sysconf(free) * os.sysconf("SC_PAGE_SIZE")


def drop_traceback(error: BaseException, device: torch.device) -> None:
    """Free what an out-of-memory error's traceback holds: the very tensors that filled the memory."""
    # `from None` is not enough: an error raised in its place still has it as its context, with its frames.
    for link in _chain(error):
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None
    if device.type == "cuda":
        release_cached_memory(device)


def empty_cache() -> None:
    """Run the garbage collector and release cached CUDA memory for other processes."""
    gc.collect()  # modules refer to each other in cycles
    release_cached_memory()


def release_cached_memory(device: torch.device | None = None) -> None:
    """Return torch's cached memory to the card, the current one if None, once it has computed what it was given.

    The memory of a CUDA graph belongs to the stream that it was captured on. Before torch unmaps an expandable segment
    it waits for that stream only, while a replay on another may still write to it.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


@contextmanager
def translate_oom(action: str, hint: str, device: torch.device) -> Iterator[None]:
    """Raise OutOfMemory in place of an out-of-memory error; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        peak, available = memory_usage(device)
        description = describe_memory(peak + requested_bytes(error), available)
        drop_traceback(error, device)
        raise OutOfMemory(f"Out of memory {action}: {description}.", hint) from None
