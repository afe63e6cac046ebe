"""Time, memory, kernel launches and waits of a function, on a card and, in a dry run, on the CPU."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from .session import Session

HERE = Path(__file__).resolve().parents[2]
_LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")


@dataclass(frozen=True)
class Times:
    """Seconds: the device's, from event to event, and the wall clock's, with one wait at the end."""

    device: float
    wall: float


def timed(session: Session, function: Callable[[], object], count: int = 1) -> Times:
    """Time one of `count` calls, which are not waited for in between."""
    wait(session)
    begin, end = _event(session), _event(session)
    started_at = time.perf_counter()
    if begin:
        begin.record()
    for _ in range(count):
        function()
    if end:
        end.record()
    wait(session)
    wall = time.perf_counter() - started_at
    device = begin.elapsed_time(end) / 1000 if begin and end else wall
    return Times(device / count, wall / count)


def wait(session: Session) -> None:
    if not session.dry:
        torch.cuda.synchronize()


def interleaved(
    session: Session, functions: dict[str, Callable[[], object]], count: int, rounds: int = 2
) -> dict[str, Times]:
    """Time functions that are warm already, in turns; return each one's median."""
    measured: dict[str, list[Times]] = {name: [] for name in functions}
    for _ in range(1 if session.dry else rounds):
        for name, function in functions.items():
            measured[name].append(timed(session, function, count))
    return {
        name: Times(median(t.device for t in times), median(t.wall for t in times)) for name, times in measured.items()
    }


def _event(session: Session) -> torch.cuda.Event | None:
    return None if session.dry else torch.cuda.Event(enable_timing=True)


def allocated(session: Session) -> int:
    return 0 if session.dry else torch.cuda.memory_allocated()


@contextmanager
def peak_memory(session: Session):
    """Yield a function that returns the bytes that the block took at most, beyond what was there before it."""
    before = allocated(session)
    if not session.dry:
        torch.cuda.reset_peak_memory_stats()
    yield lambda: 0 if session.dry else torch.cuda.max_memory_allocated() - before


def profiled(session: Session, function: Callable[[], object], count: int, name: str) -> dict[str, float]:
    """Profile `count` calls; add the 25 longest operations to a file.

    Returns, for one call, launches by the CPU (a replayed graph is one), kernels, and their seconds. The profiler makes
    the CPU slower, so a call is timed without it.
    """
    with profile(activities=[ProfilerActivity.CPU if session.dry else ProfilerActivity.CUDA]) as profiler:
        for _ in range(count):
            function()
        wait(session)
    averages = profiler.key_averages()
    key = "self_cpu_time_total" if session.dry else "self_device_time_total"
    session.append("profiles.txt", name, averages.table(sort_by=key, row_limit=25, max_name_column_width=80))
    on_device = [item for item in averages if "CUDA" in str(item.device_type)]
    numbers = {
        "launches": sum(item.count for item in averages if any(name in item.key for name in _LAUNCHES)),
        "kernels": sum(item.count for item in on_device),
        "kernel seconds": sum(item.self_device_time_total for item in on_device) / 1e6,
    }
    return {name: number / count for name, number in numbers.items()}


def waits(session: Session, function: Callable[[], object]) -> Counter[str]:
    """Return the source lines at which a function waits for the device, with their numbers."""
    lines: Counter[str] = Counter()

    def note(message, *_args, **_kwargs) -> None:
        if "called a synchronizing" in str(message):
            lines[_own_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        with sync_mode(session, "warn"):
            function()
    return lines


@contextmanager
def sync_mode(session: Session, mode: str):
    if session.dry:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _own_line() -> str:
    """The innermost line of this project on the stack, and the innermost of all."""
    frames = traceback.extract_stack()[:-2]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(HERE / "sdpersonal")]
    ending = frames[-1]
    inner = f"{Path(ending.filename).name}:{ending.lineno}"
    if not own:
        return inner
    line = f"{Path(own[-1].filename).relative_to(HERE)}:{own[-1].lineno}: {own[-1].line}"
    return line if own[-1] is ending else f"{line} (in {inner})"
