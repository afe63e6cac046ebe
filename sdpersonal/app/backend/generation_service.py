"""Run generation jobs on the one device, and load and drop the model."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...image_metadata import describe_hidden
from ...models.model_info import ModelInfo
from ...models.oom import empty_cache
from ...outputs import Outputs
from .device_worker import CallingThread, DeviceWorker, Runner
from .job_queue import JobQueue
from .render_job import AnyGenerator, JobContext, JobListener, QueuedGenerator, RenderJob
from .workspace import Workspace

MAX_JOBS = 24  # jobs in the queue, including the running one: one of each user who has any

LoadGenerator = Callable[[str | None], AnyGenerator]
"""Load a model by name (None: the default one) and return a generator with it; or one of a fleet. Raises UserError."""


class GenerationService:
    """Generate images, one batch of one job at a time; on a fleet, those of all jobs at the same time."""

    def __init__(self, load: LoadGenerator, workspace: Workspace, base: str | None = None, on_fleet: bool = False):
        self.workspace = workspace
        self.on_fleet = on_fleet
        self._device: Runner = CallingThread() if on_fleet else DeviceWorker()
        self._load, self._name = load, base
        self._generator: AnyGenerator | None = self._device.run(load, base)
        self._base = ModelInfo.of(self._generator.base)
        self._queue = JobQueue(MAX_JOBS, MAX_JOBS if on_fleet else 1)

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

    def _load_generator(self) -> AnyGenerator:
        """Return the generator, loading it if needed. Call it in the device thread, during the job's turn."""
        if self._generator is None:
            self._generator = self._load(self._name)
            self._base = ModelInfo.of(self._generator.base)
        return self._generator

    # --- generation ---------------------------------------------------------------------------------------------------

    def run(self, work: RenderJob, listener: JobListener, outputs: Outputs) -> str:
        """Run a job to its end in the calling thread, in turns with the jobs of other users; return its final message.

        Raises Interrupted when it is stopped, StepAside, and what the job raises; UserError if the queue is full.
        """
        with self._queue.job() as job:
            generator = QueuedGenerator(self._device, self._load_generator, job, listener)
            context = JobContext(generator, outputs, listener)
            message = work(context) or _ending_text(context.hidden, time.monotonic() - job.started_at)
        return " ".join([message, *context.notes])

    def is_wanted_alone(self) -> bool:
        """Return whether somebody waits to switch or drop the model, which an endless job must make way for."""
        return self._queue.is_wanted_alone

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until no job is left, at most some seconds; return whether that is so."""
        return self._queue.wait_until_empty(seconds)


def _ending_text(hidden: list[bool], seconds: float) -> str:
    return f"{count_text(len(hidden))} in {seconds:.1f} s. {describe_hidden(hidden)}".rstrip()


def count_text(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
