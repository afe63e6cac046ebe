"""Provide the context of one generation job: a generator that yields to other jobs, and a listener to report to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from ...config import GenerateRequest
from ...fleet.serving.remote_generator import RemoteGenerator
from ...generation import GeneratedImage, Generator
from ...generation.prompt_resolution import ConceptSource
from ...models import StableDiffusion
from ...models.model_info import ModelInfo
from ...outputs import Outputs
from .device_worker import Runner
from .job_queue import Job

JobKind = Literal["generate", "endless", "grid", "variations", "change", "hires", "redo"]


AnyGenerator = Generator | RemoteGenerator
"""A generator of this machine, or one of a fleet."""


class StepAside(Exception):
    """Raised by an endless job that lets another job of its user go first; it is to be run again later."""


class JobListener(Protocol):
    """Whom a job reports to. Methods are called in several threads, and must not take long."""

    def is_stopped(self) -> bool: ...
    def must_step_aside(self) -> bool:
        """Return whether another job of the same user waits."""
        ...

    def on_wait(self, ahead: int) -> None:
        """Note that the job waits for its first turn, with so many jobs before it."""

    def on_turn(self) -> None:
        """Note that the job has the device for its first batch."""

    def on_progress(self, done: int, total: int) -> None: ...
    def on_preview(self, images: list[Image.Image]) -> None: ...
    def on_image(self, path: Path) -> None:
        """Note that an image was saved."""


class QueuedGenerator:
    """A generator with the interface of `Generator` that holds the device only while it computes."""

    def __init__(
        self,
        device: Runner,
        generator: Callable[[], AnyGenerator],
        job: Job,
        listener: JobListener,
        concepts: ConceptSource | None = None,
    ):
        self._device, self._get_generator, self._job = device, generator, job
        self._listener, self._concepts = listener, concepts

    @property
    def base(self) -> StableDiffusion | ModelInfo:
        return self._device.run(self._get_generator).base

    def with_concepts(self, concepts: ConceptSource) -> QueuedGenerator:
        """Return the same generator with other concepts: a recipe's, a run's."""
        return QueuedGenerator(self._device, self._get_generator, self._job, self._listener, concepts)

    def generate(
        self,
        request: GenerateRequest,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[GeneratedImage]:
        """Generate images as `Generator.generate` does; raises Interrupted also if the user stopped the job."""
        listener = self._listener

        def is_stopped() -> bool:
            return listener.is_stopped() or cancelled()

        images: Iterator[GeneratedImage] | None = None

        def next_image() -> GeneratedImage | None:
            nonlocal images
            if images is None:
                generator = self._get_generator()
                generator = generator.with_concepts(self._concepts) if self._concepts else generator
                images = generator.generate(request, progress, is_stopped, listener.on_preview)
            return next(images, None)

        while True:
            is_first = not self._job.started_at
            with self._job.turn(is_stopped, listener.on_wait):
                if is_first:
                    listener.on_turn()
                image = self._device.run(next_image)
            if image is None:
                return
            yield image


@dataclass(frozen=True)
class JobContext:
    """What a `RenderJob` works with. generator: takes turns with other jobs; outputs: the user's saved images; hidden:
    of each image, whether the safety checker flagged it; notes: sentences for the final message."""

    generator: QueuedGenerator
    outputs: Outputs
    listener: JobListener
    hidden: list[bool] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def stopped(self) -> bool:
        return self.listener.is_stopped()

    def progress(self, done: int, total: int) -> None:
        self.listener.on_progress(done, total)

    def save_image(self, image: GeneratedImage) -> None:
        """Save a finished image and report it."""
        self.add_image(self.outputs.save(image.to_png()), image.hidden)

    def add_image(self, path: Path, hidden: bool = False) -> None:
        """Report an image that is already saved."""
        self.hidden.append(hidden)
        self.listener.on_image(path)


RenderJob = Callable[[JobContext], str | None]
"""Generate images; return the final message, or None for the default one."""


@dataclass(frozen=True)
class JobPlan:
    """A job that a user asks for, checked. title: what it makes, in words; expected: number of images, None for an
    endless one; request: what plans it anew after a restart, as JSON, None for a job that ends with the app."""

    kind: JobKind
    title: str
    expected: int | None
    work: RenderJob
    request: Mapping[str, Any] | None = None
