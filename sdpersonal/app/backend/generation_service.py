"""Drawing for pages: one device, a line of jobs before it, and for each page what it is to show at the moment."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...config import GenerateRequest
from ...config.scheduler_names import difference
from ...errors import Interrupted
from ...generation import Generator
from ...image_metadata import describe_hidden
from ...models.oom import empty_cache
from ...playground.endless import EndlessSeries, generate_endless
from .device_worker import DeviceWorker
from .error_text import describe_error
from .job_queue import Job, JobQueue
from .models.info import ModelInfo
from .render_job import JobContext, QueuedGenerator, SessionImage
from .workspace import Workspace

IDLE_MESSAGE = "Write a prompt and press Draw. Your pictures appear here."
MAX_JOBS = 24  # jobs in the line, the one that draws among them
MAX_ENDLESS = 500  # pictures; whoever is there presses again
_VIEW_SECONDS = 0.5  # seconds between views: each costs server and browser a tenth of a second of a core

LoadGenerator = Callable[[str | None], Generator]
"""A base's name, None for the usual one, to a generator with it. Raises UserError."""
RenderJob = Callable[[JobContext], str | None]
"""Draws, and says what there is to say at the end instead of the usual."""


@dataclass(frozen=True)
class JobView:
    """What the page shows of a job at one moment. done: the share that is finished, 0 to 1; preview: how the pictures
    that are being drawn look so far."""

    message: str
    results: tuple[SessionImage, ...] = ()
    done: float = 0.0
    preview: tuple[Image.Image, ...] = ()


class GenerationService:
    """Draws for pages, each known by its session's name; a page has one drawing at a time."""

    def __init__(self, load: LoadGenerator, house: Workspace, base: str | None = None):
        self.workspace = house
        self._device = DeviceWorker()
        self._load, self._name = load, base
        self._generator: Generator | None = self._device.do(load, base)
        self._base = ModelInfo.of(self._generator.base)
        self._queue = JobQueue(MAX_JOBS)
        self._stop_events: dict[str, threading.Event] = {}

    # --- the base -----------------------------------------------------------------------------------------------------

    @property
    def base(self) -> ModelInfo:
        """Of the base that is loaded, or was last."""
        return self._base

    def describe_base(self) -> str:
        """Which base is loaded, in a line."""
        return self.base.line()

    def use(self, name: str) -> str:
        """Load another base as soon as nothing is half drawn; what it is, in a line.

        The one that was there goes first: memory may not hold both. Raises UserError where the other cannot be
        loaded; then the next drawing loads the former one again.
        """
        with self._queue.job(alone=True) as job, job.turn():
            self._drop()
            self._generator = self._device.do(self._load, name)
            self._name, self._base = name, ModelInfo.of(self._generator.base)
        return self.describe_base()

    def release(self) -> None:
        """Give the base's memory back until the next drawing, which loads it again: for a training on the same card."""
        with self._queue.job(alone=True) as job, job.turn():
            self._drop()

    def _drop(self) -> None:
        self._generator = None
        empty_cache()

    def _load_generator(self) -> Generator:
        """In the device's thread, with the device to oneself."""
        if self._generator is None:
            self._generator = self._load(self._name)
            self._base = ModelInfo.of(self._generator.base)
        return self._generator

    # --- drawing ------------------------------------------------------------------------------------------------------

    def do(self, order: Callable[[], RenderJob], page: str, user: str | None = None) -> Iterator[JobView]:
        """What to show as a page's work goes on; the last one says how it ended. A mistake in the order is told so too.

        order: for example `lambda: pictures(form)`.
        """
        try:
            work = order()
        except Exception as error:
            yield JobView(describe_error(error), done=1.0)
            return
        self.stop(page)  # a page has one at a time
        stop = self._stop_events[page] = threading.Event()
        try:
            yield from self._job_views(work, stop, page, user)
        finally:
            stop.set()  # also when the page went away and nobody asks for the next view
            if self._stop_events.get(page) is stop:
                del self._stop_events[page]

    def stop(self, page: str) -> None:
        """End the page's drawing at the next step; what is finished stays."""
        if stop := self._stop_events.get(page):
            stop.set()

    def end(self) -> None:
        """The app ends: so do all drawings."""
        for stop in list(self._stop_events.values()):
            stop.set()

    def leave(self, page: str) -> None:
        """The page was closed."""
        self.stop(page)
        self.workspace.leave(page)

    def _job_views(self, work: RenderJob, stop: threading.Event, page: str, user: str | None) -> Iterator[JobView]:
        # A thread of its own: the page asks for views from whichever thread is free, a drawing must stay in one.
        news: queue.SimpleQueue = queue.SimpleQueue()
        ended = threading.Event()
        threading.Thread(target=self._work, args=(work, stop, news.put, ended, page, user), daemon=True).start()
        view, last = JobView(""), False
        while not last:
            last = ended.wait(_VIEW_SECONDS)
            change: dict = {}
            while not news.empty():
                change |= news.get()
            if change:
                view = replace(view, **change)
                yield view

    def _work(
        self, work: RenderJob, stop: threading.Event, put, ended: threading.Event, page: str, user: str | None
    ) -> None:
        results: list[SessionImage] = []
        hidden: list[bool] = []
        notes: list[str] = []
        try:
            with self._queue.job() as job:
                desk = self._job_context(job, stop, put, page, user, results, hidden, notes)
                said = work(desk)
            message = " ".join([said or _ending_text(len(results), time.monotonic() - job.started_at, hidden), *notes])
        except Interrupted:
            message = f"Stopped. {_count_text(len(results))} finished and kept." if results else "Stopped."
        except Exception as error:
            message = describe_error(error)
        put({"message": message, "done": 1.0, "preview": ()})
        ended.set()

    def _job_context(self, job: Job, stop: threading.Event, put, page: str, user, results, hidden, notes) -> JobContext:
        def waits(ahead: int) -> None:
            put({"message": f"In the line: {ahead} before you." if ahead else "Just a moment …"})

        def preview(pictures: list[Image.Image]) -> None:
            put({"preview": tuple(pictures)})

        generator = QueuedGenerator(self._device, self._load_generator, job, stop.is_set, preview, waits)
        return JobContext(generator, self.workspace, page, user, stop, put, results, hidden, notes)


def generate_job(form: Mapping[str, Any]) -> RenderJob:
    """The pictures of a `GenerateRequest` with these fields. Raises UserError."""
    request = GenerateRequest(**form)

    def work(desk: JobContext) -> None:
        desk.notes.extend(filter(None, [difference(request.scheduler)]))
        for picture in desk.generator.draw(request, desk.progress):
            desk.keep(picture)

    return work


def endless_job(form: Mapping[str, Any], wildcards: Path | None = None) -> RenderJob:
    """On and on, each picture with other alternatives and another seed, from where it was. Raises UserError."""
    request = GenerateRequest(**{**form, "n": 1, "every": False})
    series = EndlessSeries(request, wildcards)

    def work(desk: JobContext) -> str:
        desk.notes.extend(filter(None, [difference(request.scheduler)]))
        drawn = generate_endless(
            series, desk.generator, desk.outputs, MAX_ENDLESS, progress=desk.progress, stopped=desk.stopped
        )
        for path, hidden in drawn:
            desk.show(path, hidden)
        return f"{MAX_ENDLESS} pictures are enough for now. Press Endless to go on."

    return work


def _ending_text(drawn: int, seconds: float, hidden: list[bool]) -> str:
    return f"{_count_text(drawn)} in {seconds:.1f} s. Click one to do more with it. {describe_hidden(hidden)}".rstrip()


def _count_text(drawn: int) -> str:
    return "1 picture" if drawn == 1 else f"{drawn} pictures"


def append_token(prompt: str, token: str) -> str:
    """The prompt with the token behind it, one space between."""
    return f"{prompt.rstrip()} {token}".lstrip()
