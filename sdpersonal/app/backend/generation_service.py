"""Generate images for pages: one device, a queue of jobs for it, and a stream of job views for each page."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from PIL import Image

from ...errors import Interrupted
from ...generation import Generator
from ...image_metadata import describe_hidden
from ...models.oom import empty_cache
from .device_worker import DeviceWorker
from .error_text import describe_error
from .job_queue import Job, JobQueue
from .models.model_info import ModelInfo
from .render_job import JobContext, JobViewUpdate, QueuedGenerator, SessionImage
from .workspace import Workspace

IDLE_MESSAGE = "Write a prompt and press Generate. Your images appear here."
MAX_JOBS = 24  # jobs in the queue, including the running one
MAX_USER_JOBS = 3  # of one user, where users log in; a page is only a name that the browser makes up
_END_SECONDS = 3.0  # that jobs have to end when the app ends: a step of the model takes as long as it takes
_VIEW_SECONDS = 0.5  # seconds between views: each costs server and browser a tenth of a second of a core

LoadGenerator = Callable[[str | None], Generator]
"""Load a model by name (None: the default one) and return a generator with it. Raises UserError."""
RenderJob = Callable[[JobContext], str | None]
"""Generate images; return the final message, or None for the default one."""


@dataclass(frozen=True)
class JobView:
    """The state of a job as the page shows it. progress: 0 to 1; preview: intermediate images of the
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
        self._queue = JobQueue(MAX_JOBS, MAX_USER_JOBS)
        self._stop_events: dict[str, threading.Event] = {}
        self._closed = threading.Event()

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
        """Run a page's job and yield its views; the last one says how it ended, also if `build_job` raised.

        build_job: creates the job, for example `lambda: generate_job(form)`.
        """
        try:
            work = build_job()
        except Exception as error:
            yield JobView(describe_error(error), progress=1.0)
            return
        self.stop(page)  # a page has one job at a time
        stop = self._stop_events[page] = threading.Event()
        if self._closed.is_set():
            stop.set()
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
        """Stop all jobs when the app ends, and wait a little for them; later ones stop at once."""
        self._closed.set()
        for stop in list(self._stop_events.values()):
            stop.set()
        self._queue.wait_until_empty(_END_SECONDS)

    def close_session(self, page: str) -> None:
        """Clean up after a closed page."""
        self.stop(page)
        self.workspace.close_session(page)

    def _job_views(self, job: RenderJob, stop: threading.Event, page: str, user: str | None) -> Iterator[JobView]:
        # The page asks for views from whichever thread is free, but a job must stay in one thread: it gets its own.
        updates: queue.SimpleQueue[JobViewUpdate] = queue.SimpleQueue()
        finished = threading.Event()
        threading.Thread(target=self._work, args=(job, stop, updates.put, finished, page, user), daemon=True).start()
        view, last = JobView(""), False
        while not last:
            last = finished.wait(_VIEW_SECONDS)
            changes: JobViewUpdate = {}
            while not updates.empty():
                changes |= updates.get()
            if changes:
                view = replace(view, **changes)
                yield view

    def _work(
        self, work: RenderJob, stop: threading.Event, send, finished: threading.Event, page: str, user: str | None
    ) -> None:
        results: list[SessionImage] = []
        hidden: list[bool] = []
        notes: list[str] = []
        try:
            with self._queue.job(user=user, is_stopped=stop.is_set) as job:
                context = self._job_context(job, stop, send, page, user, results, hidden, notes)
                closing_message = work(context)
            message = " ".join(
                [closing_message or _ending_text(len(results), time.monotonic() - job.started_at, hidden), *notes]
            )
        except Interrupted:
            message = f"Stopped. {_count_text(len(results))} finished and saved." if results else "Stopped."
        except Exception as error:
            message = describe_error(error)
        send({"message": message, "progress": 1.0, "preview": ()})
        finished.set()

    def _job_context(
        self, job: Job, stop: threading.Event, send, page: str, user, results, hidden, notes
    ) -> JobContext:
        def on_wait(ahead: int) -> None:
            send({"message": f"In the queue: {ahead} ahead of you." if ahead else "Starting …"})

        def preview(images: list[Image.Image]) -> None:
            send({"preview": tuple(images)})

        generator = QueuedGenerator(self._device, self._load_generator, job, stop.is_set, preview, on_wait)
        return JobContext(generator, self.workspace, page, user, stop, send, results, hidden, notes)


def _ending_text(count: int, seconds: float, hidden: list[bool]) -> str:
    return f"{_count_text(count)} in {seconds:.1f} s. Click one for more actions. {describe_hidden(hidden)}".rstrip()


def _count_text(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
