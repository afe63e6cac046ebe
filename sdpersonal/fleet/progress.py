"""How far a fleet is: a summary with the time left, and a page in the store that shows every job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..display.html import render_template
from ..display.units import format_duration
from .driver import Tracked
from .jobs import JobState
from .store import Store

PAGE = "index.html"
_TEMPLATE = Path(__file__).with_name("fleet.html")


@dataclass(frozen=True)
class Summary:
    """done, total: jobs; running: jobs in training; seconds_left: None before the first is far enough to tell."""

    done: int
    total: int
    running: int
    seconds_left: float | None


def summarize(jobs: Sequence[Tracked], slots: int) -> Summary:
    """Count the jobs and estimate the time left: that of the waiting ones at the pace of the others, on all slots."""
    over = [job for job in jobs if job.is_over or job.state is JobState.TRAINED]
    running = [job for job in jobs if job.state is JobState.RUNNING]
    waiting = [job for job in jobs if job.state is JobState.WAITING]
    ends = {job.job.id: _seconds_left(job) for job in running}
    whole = [job.result.seconds for job in over if job.result]
    whole += [
        (job.attempt.seconds if job.attempt else 0) + (ends[job.job.id] or 0) for job in running if ends[job.job.id]
    ]
    known = [seconds for seconds in ends.values() if seconds is not None]
    left: float | None = None
    if not running and not waiting:
        left = 0.0
    elif whole:
        mean = sum(whole) / len(whole)
        unknown = len(running) - len(known)
        left = max([*known, (sum(known) + (unknown + len(waiting)) * mean) / max(1, slots)])
    return Summary(len(over), len(jobs), len(running), left)


def _seconds_left(job: Tracked) -> float | None:
    attempt = job.attempt
    return attempt.left if attempt and attempt.steps and attempt.step else None


def write_page(store: Store, jobs: Sequence[Tracked], slots: int) -> None:
    """Write the page, which reloads itself while jobs are open."""
    summary = summarize(jobs, slots)
    rows = [_row(job) for job in jobs]
    is_over = summary.done == summary.total
    page = render_template(
        _TEMPLATE, title="Fleet of trainings", headline=headline(summary), rows=rows, is_over=is_over, now=_now()
    )
    store.write(PAGE, page.encode())


def headline(summary: Summary) -> str:
    text = f"{summary.done} of {summary.total} over, {summary.running} running"
    if summary.seconds_left is None or summary.done == summary.total:
        return text
    return f"{text}, about {format_duration(summary.seconds_left)} left"


def _row(job: Tracked) -> dict[str, object]:
    attempt = job.attempt
    is_running = job.state is JobState.RUNNING
    note = job.failure.message if job.failure else (attempt.detail if attempt and not job.result else "")
    return {
        "token": job.result.token if job.result and job.result.token else job.token,
        "id": job.job.id,
        "state": str(job.state),
        "step": attempt.step if attempt and is_running else 0,
        "steps": attempt.steps if attempt and is_running else 0,
        "left": format_duration(attempt.left) if attempt and is_running and attempt.steps else "",
        "time": format_duration(job.result.seconds) if job.result else "",
        "node": attempt.node if attempt and is_running else "",
        "attempts": job.attempts,
        "note": note,
    }


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
