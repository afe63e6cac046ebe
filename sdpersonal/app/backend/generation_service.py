"""Generate images for pages: one device, a queue of jobs for it, and a stream of job views for each page."""

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
MAX_JOBS = 24  # jobs in the queue, including the running one
MAX_ENDLESS = 500  # images; a user who is still there presses Endless again
_VIEW_SECONDS = 0.5  # seconds between views: each costs server and browser a tenth of a second of a core

LoadGenerator = Callable[[str | None], Generator]
"""Load a model by name (None: the default one) and return a generator with it. Raises UserError."""
RenderJob = Callable[[JobContext], str | None]
"""Generate images; return the final message, or None for the default one."""


@dataclass(frozen=True)
class JobView:
    """The state of a job as the page shows it. done: finished share, 0 to 1; preview: intermediate images of the
    current batch."""

    message: str
    results: tuple[SessionImage, ...] = ()
    progress: float = 0.0
    preview: tuple[Image.Image, ...] = ()


class GenerationService:
    """Generate images for pages, each identified by its session name; a page has one job at a time."""

    def __init__(self, load: LoadGenerator, workspace: Workspace, base: str | None = None):
        self.workspace = workspace
        self._device = DeviceWorker()
        self._load, self._name = load, base
        self._generator: Generator | None = self._device.run(load, base)
        self._base = ModelInfo.of(self._generator.base)
        self._queue = JobQueue(MAX_JOBS)
        self._stop_events: dict[str, threading.Event] = {}

    # --- the model ----------------------------------------------------------------------------------------------------

    @property
    def base(self) -> ModelInfo:
        """Facts of the loaded model, or of the last one loaded."""
        return self._base

    def describe_base(self) -> str:
        """Describe the loaded model in one line."""
        return self.base.line()

    def switch_base(self, name: str) -> str:
        """Load another model once no job is half done; return its description in one line.

        The current model is dropped first, since memory may not hold both. Raises UserError if the new one cannot be
        loaded; the next job then loads the former one again.
        """
        with self._queue.job(alone=True) as job, job.turn():
            self._drop()
            self._generator = self._device.run(self._load, name)
            self._name, self._base = name, ModelInfo.of(self._generator.base)
        return self.describe_base()

    def release(self) -> None:
        """Free the model's memory for a training on the same GPU; the next job loads the model again."""
        with self._queue.job(alone=True) as job, job.turn():
            self._drop()

    def _drop(self) -> None:
        self._generator = None
        empty_cache()

    def _load_generator(self) -> Generator:
        """Return the generator, loading it if needed. Call it in the device thread, during the job's turn."""
        if self._generator is None:
            self._generator = self._load(self._name)
            self._base = ModelInfo.of(self._generator.base)
        return self._generator

    # --- generation ---------------------------------------------------------------------------------------------------

    def submit(self, build_job: Callable[[], RenderJob], page: str, user: str | None = None) -> Iterator[JobView]:
        """Run a page's job and yield its views; the last one says how it ended, also for an error raised by `order`.

        order: creates the job, for example `lambda: generate_job(form)`.
        """
        try:
            work = build_job()
        except Exception as error:
            yield JobView(describe_error(error), progress=1.0)
            return
        self.stop(page)  # a page has one job at a time
        stop = self._stop_events[page] = threading.Event()
        try:
            yield from self._job_views(work, stop, page, user)
        finally:
            stop.set()  # also when the page was closed and nobody asks for the next view
            if self._stop_events.get(page) is stop:
                del self._stop_events[page]

    def stop(self, page: str) -> None:
        """Stop the page's job at the next step; finished images stay."""
        if stop := self._stop_events.get(page):
            stop.set()

    def close(self) -> None:
        """Stop all jobs when the app ends."""
        for stop in list(self._stop_events.values()):
            stop.set()

    def close_session(self, page: str) -> None:
        """Clean up after a closed page."""
        self.stop(page)
        self.workspace.close_session(page)

    def _job_views(self, job: RenderJob, stop: threading.Event, page: str, user: str | None) -> Iterator[JobView]:
        # The page asks for views from whichever thread is free, but a job must stay in one thread: it gets its own.
        updates: queue.SimpleQueue = queue.SimpleQueue()
        finished = threading.Event()
        threading.Thread(target=self._work, args=(job, stop, updates.put, finished, page, user), daemon=True).start()
        view, last = JobView(""), False
        while not last:
            last = finished.wait(_VIEW_SECONDS)
            changes: dict = {}
            while not updates.empty():
                changes |= updates.get()
            if changes:
                view = replace(view, **changes)
                yield view

    def _work(
        self, work: RenderJob, stop: threading.Event, put, ended: threading.Event, page: str, user: str | None
    ) -> None:
        results: list[SessionImage] = []
        hidden: list[bool] = []
        notes: list[str] = []
        try:
            with self._queue.job() as job:
                context = self._job_context(job, stop, put, page, user, results, hidden, notes)
                closing_message = work(context)
            message = " ".join(
                [closing_message or _ending_text(len(results), time.monotonic() - job.started_at, hidden), *notes]
            )
        except Interrupted:
            message = f"Stopped. {_count_text(len(results))} finished and kept." if results else "Stopped."
        except Exception as error:
            message = describe_error(error)
        put({"message": message, "done": 1.0, "preview": ()})
        ended.set()

    def _job_context(self, job: Job, stop: threading.Event, put, page: str, user, results, hidden, notes) -> JobContext:
        def waits(ahead: int) -> None:
            put({"message": f"In the line: {ahead} before you." if ahead else "Just a moment …"})

        def preview(images: list[Image.Image]) -> None:
            put({"preview": tuple(images)})

        generator = QueuedGenerator(self._device, self._load_generator, job, stop.is_set, preview, waits)
        return JobContext(generator, self.workspace, page, user, stop, put, results, hidden, notes)


def generate_job(form: Mapping[str, Any]) -> RenderJob:
    """Create a job that generates the images of a `GenerateRequest` with these fields. Raises UserError."""
    request = GenerateRequest(**form)

    def work(job: JobContext) -> None:
        job.notes.extend(filter(None, [difference(request.scheduler)]))
        for image in job.generator.draw(request, job.progress):
            job.save_image(image)

    return work


def endless_job(form: Mapping[str, Any], wildcards: Path | None = None) -> RenderJob:
    """Create a job that generates endlessly, each image with other alternatives and another seed. Raises UserError."""
    request = GenerateRequest(**{**form, "n": 1, "every": False})
    series = EndlessSeries(request, wildcards)

    def work(job: JobContext) -> str:
        job.notes.extend(filter(None, [difference(request.scheduler)]))
        saved_images = generate_endless(
            series, job.generator, job.outputs, MAX_ENDLESS, progress=job.progress, cancelled=job.stopped
        )
        for path, hidden in saved_images:
            job.add_image(path, hidden)
        return f"{MAX_ENDLESS} pictures are enough for now. Press Endless to go on."

    return work


def _ending_text(drawn: int, seconds: float, hidden: list[bool]) -> str:
    return f"{_count_text(drawn)} in {seconds:.1f} s. Click one to do more with it. {describe_hidden(hidden)}".rstrip()


def _count_text(drawn: int) -> str:
    return "1 picture" if drawn == 1 else f"{drawn} pictures"


def append_token(prompt: str, token: str) -> str:
    """Append the token to the prompt after one space."""
    return f"{prompt.rstrip()} {token}".lstrip()
