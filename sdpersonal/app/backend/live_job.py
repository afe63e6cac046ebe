"""Follow one job of a user while it waits, runs and after it has ended, as the page shows it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...display.html import data_url
from ...display.image_grid import encode_jpeg
from .kept_jobs import KeptJob
from .render_job import JobPlan

MAX_SHOWN_IMAGES = 100  # of a job, the newest: an endless one makes hundreds
_MAX_ENDED_IMAGES = 16  # of a job that has ended
_PREVIEW_SECONDS = 0.5  # between two previews: each costs server and browser some of their time


class Throttle:
    """Call an action at most once in some seconds, in a thread of its own. A call is delayed, never lost."""

    def __init__(self, seconds: float, action: Callable[[], None]):
        self._seconds, self._action = seconds, action
        self._last, self._is_pending = 0.0, False
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            if self._is_pending:
                return
            self._is_pending = True
            delay = max(0.0, self._last + self._seconds - time.monotonic())
        timer = threading.Timer(delay, self._run)
        timer.daemon = True
        timer.start()

    def _run(self) -> None:
        with self._lock:
            self._is_pending, self._last = False, time.monotonic()
        self._action()


@dataclass(frozen=True)
class Reports:
    """What a job knows of its line and reports to. lock: of the line; jobs_changed: tells the pages of the user's jobs;
    others_wait: whether an endless job must make way; is_watched: whether a page of the user is open; publish:
    sends an event (kind, data, key); entry_of: returns a saved image as pages show it."""

    lock: threading.Condition
    jobs_changed: Callable[[], None]
    others_wait: Callable[[], bool]
    is_watched: Callable[[], bool]
    publish: Callable[[str, Any, str], None]
    entry_of: Callable[[Path], dict[str, Any]]


class LiveJob:
    """A job in its user's line; the listener of its own run (`JobListener`).

    restored: the job as an earlier app left it; marks: of its images that were saved then.
    """

    def __init__(self, plan: JobPlan, reports: Reports, restored: KeptJob | None = None, marks: Sequence[str] = ()):
        self.plan, self.is_restored = plan, restored is not None
        self.id, self.created = (restored.id, restored.created) if restored else (secrets.token_hex(6), time.time())
        self.marks, self.starts = list(marks), restored.starts if restored else 0  # as in `KeptJob`
        self.state = "waiting"
        self.message = ""
        self.ahead = 0  # jobs of others before it
        self.image_count = 0
        self._images: list[dict[str, Any]] = []  # entries, the newest `MAX_SHOWN_IMAGES`
        self._reports, self._lock = reports, reports.lock
        self._stop = threading.Event()
        self._done, self._total = 0, 0
        self._first_step: tuple[float, int] | None = None  # time and steps done when the first step was reported
        self._preview: list[Image.Image] = []
        self._send_preview = Throttle(_PREVIEW_SECONDS, self._publish_preview)

    @property
    def has_ended(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    @property
    def image_ids(self) -> list[str]:
        """The ids of its images, the newest `MAX_SHOWN_IMAGES`."""
        with self._lock:
            return [entry["id"] for entry in self._images]

    def view(self, ahead: int = 0) -> dict[str, Any]:
        """Return the job as JSON. ahead: jobs of others before it."""
        with self._lock:
            return {
                "id": self.id,
                "kind": self.plan.kind,
                "title": self.plan.title,
                "state": self.state,
                "done": self._done,
                "total": self._total,
                "left": self._seconds_left(),
                "ahead": ahead,
                "message": self.message,
                "images": [dict(entry) for entry in self._images[-_MAX_ENDED_IMAGES if self.has_ended else 0 :]],
                "count": self.image_count,
                "expected": self.plan.expected,
                "created": self.created,
                "restored": self.is_restored,
            }

    def content(self, is_closing: bool) -> dict[str, Any] | None:
        """Return the job as `KeptJob` has it; None if it ends with the app, as an endless one does that has begun.
        is_closing: the app ends as it should, and the job's starts do not count."""
        request = self.plan.request
        if request is None or (self.plan.kind == "endless" and (self.image_count or self.state == "running")):
            return None
        content = {"id": self.id, "created": self.created, "request": request, "marks": list(self.marks)}
        return content | {"starts": 0 if is_closing else self.starts}

    def note_mark(self, mark: str) -> None:
        """Note an image that is about to be saved."""
        with self._lock:
            self.marks.append(mark)
            self.starts = 1

    def stop(self) -> None:
        """End at the next step."""
        self._stop.set()

    def end(self, state: str, message: str) -> None:
        with self._lock:
            self.state, self.message, self.ahead, self._preview = state, message, 0, []

    def update_images(self, ids: set[str], favourite: bool | None) -> None:
        """Mark images as favourites or not; None: forget them."""
        with self._lock:
            if favourite is None:
                self._images = [entry for entry in self._images if entry["id"] not in ids]
            for entry in self._images:
                if entry["id"] in ids:
                    entry["favourite"] = favourite

    # --- the listener -------------------------------------------------------------------------------------------------

    def is_stopped(self) -> bool:
        return self._stop.is_set()

    def must_step_aside(self) -> bool:
        return self._reports.others_wait()

    def on_wait(self, ahead: int) -> None:
        self._update(ahead=ahead, message=f"In the queue: {ahead} ahead of you." if ahead else "Starting …")

    def on_turn(self) -> None:
        self._first_step = None
        self._update(state="running", ahead=0, message="Starting …")

    def on_progress(self, done: int, total: int) -> None:
        self._first_step = self._first_step or (time.monotonic(), done)
        self._update(_done=done, _total=total, message=f"Step {done} of {total}")

    def on_preview(self, images: list[Image.Image]) -> None:
        if self._reports.is_watched():
            self._preview = images
            self._send_preview()

    def on_image(self, path: Path) -> None:
        entry = self._reports.entry_of(path)
        with self._lock:
            self._images = [*self._images, entry][-MAX_SHOWN_IMAGES:]
            self.image_count += 1
            self._preview = []
        self._reports.publish("image", {"job": self.id, "image": entry}, entry["id"])
        self._update()

    def _update(self, **values: Any) -> None:
        with self._lock:
            for name, value in values.items():
                setattr(self, name, value)
            self._lock.notify_all()
        if self._reports.is_watched():
            self._reports.jobs_changed()

    def _publish_preview(self) -> None:
        images, self._preview = self._preview, []
        if images and not self.has_ended:
            urls = [data_url(encode_jpeg(image), "image/jpeg") for image in images]
            self._reports.publish("preview", {"job": self.id, "images": urls}, self.id)

    def _seconds_left(self) -> float | None:
        """Estimate the seconds left from the steps so far; None before there are any, and for an endless job."""
        if self.state != "running" or self.plan.expected is None or self._first_step is None:
            return None
        begun_at, begun_with = self._first_step
        if self._done <= begun_with or self._total <= 0:
            return None
        return round((time.monotonic() - begun_at) / (self._done - begun_with) * (self._total - self._done), 1)
