"""Summarize the trainings of a fleet, and write the page in the store that shows its trainings and generations.

Each driver writes its part of the page for itself, and shows that of the other as it was written last.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..display.html import render_template
from ..display.units import format_duration
from .driver_loop import Summary
from .generation_driver import GenerationDriver, TrackedRequest
from .jobs import JobState
from .store import Store
from .training_driver import Tracked

PAGE = "index.html"
_SECTIONS = ("trainings", "images")
_MAX_ROWS = 1000  # of requests on the page
_TEMPLATE = Path(__file__).with_name("fleet.html")


def summarize(jobs: Sequence[Tracked], slots: int) -> Summary:
    """Count the jobs and estimate the time left: that of the waiting ones at the pace of the others, on all slots."""
    done = [job for job in jobs if job.state in (JobState.DONE, JobState.TRAINED)]
    failed = [job for job in jobs if job.state in (JobState.FAILED, JobState.CANCELLED)]
    running = [job for job in jobs if job.state is JobState.RUNNING]
    waiting = [job for job in jobs if job.state is JobState.WAITING]
    ends = {job.job.id: _seconds_left(job) for job in running}
    whole = [job.result.seconds for job in done if job.result]
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
    return Summary(len(jobs), len(done), len(failed), len(running), left)


def _seconds_left(job: Tracked) -> float | None:
    attempt = job.attempt
    return attempt.left if attempt and attempt.steps and attempt.step else None


@dataclass(frozen=True)
class Section:
    """A part of the page. name: "trainings" or "images"; rows: of its table."""

    name: str
    headline: str
    is_over: bool
    rows: list[dict[str, Any]]
    written: str = ""


def write_trainings(store: Store, jobs: Sequence[Tracked], summary: Summary) -> None:
    """Write the page of trainings, which reloads itself while jobs are open."""
    _write_page(store, Section("trainings", headline(summary), summary.over == summary.total, [*map(_row, jobs)]))


def write_images(store: Store, driver: GenerationDriver, summary: Summary) -> None:
    """Write the page of a generation: requests that failed or run, then others, up to a limit."""
    ranks = {"failed": 0, "running": 1, "waiting": 2, "done": 3}
    requests = sorted(driver.requests, key=lambda request: ranks[driver.state_of(request)])
    rows = [_request_row(driver, request) for request in requests[:_MAX_ROWS]]
    text = f"{headline(summary)}; {len(driver.requests)} requests"
    _write_page(store, Section("images", text, driver.is_over(), rows))


def _write_page(store: Store, section: Section) -> None:
    section = replace(section, written=time.strftime("%Y-%m-%d %H:%M:%S"))
    sections = [part for name in _SECTIONS if (part := section if name == section.name else _read_section(store, name))]
    store.write_json(_section_key(section.name), asdict(section))
    is_over = all(part.is_over for part in sections)
    page = render_template(_TEMPLATE, title="Fleet", sections=sections, is_over=is_over)
    store.write(PAGE, page.encode())


def _read_section(store: Store, name: str) -> Section | None:
    """Return what the other driver wrote last; None if there is none."""
    content = store.read_json(_section_key(name)) or {}
    rows, headline = content.get("rows"), content.get("headline")
    if not isinstance(rows, list) or not isinstance(headline, str):
        return None
    return Section(name, headline, content.get("is_over") is True, rows, str(content.get("written")))


def _section_key(name: str) -> str:
    return f"page/{name}.json"


def _request_row(driver: GenerationDriver, request: TrackedRequest) -> dict[str, Any]:
    state = driver.state_of(request)
    return {
        "token": f"line {request.line}",
        "id": request.user,
        "state": state,
        "step": driver.num_done(request),
        "steps": len(request.images),
        "time": format_duration(request.seconds) if request.seconds else "",
        "node": request.node,
        "note": request.failure.message if request.failure else "",
    }


def headline(summary: Summary) -> str:
    text = f"{summary.over} of {summary.total} over, {summary.running} running"
    if summary.seconds_left is None or summary.over == summary.total:
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
