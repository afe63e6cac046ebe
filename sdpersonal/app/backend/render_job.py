"""Provide the context of one generation job: a generator that yields to other jobs, and a way to update the page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from PIL import Image

from ...config import GenerateRequest
from ...generation import GeneratedImage, Generator
from ...generation.prompt_resolution import ConceptSource
from ...outputs import Outputs
from .device_worker import DeviceWorker
from .job_queue import Job
from .workspace import Workspace


@dataclass(frozen=True)
class SessionImage:
    """An image on the page. saved: the saved file; served: its copy in the session's folder, which may be served."""

    saved: Path
    served: Path
    caption: str


class QueuedGenerator:
    """A generator with the interface of `Generator` that holds the device only while it computes."""

    def __init__(
        self,
        device: DeviceWorker,
        generator: Callable[[], Generator],
        job: Job,
        stopped: Callable[[], bool],
        preview: Callable[[list[Image.Image]], None],
        on_wait: Callable[[int], None],
        concepts: ConceptSource | None = None,
    ):
        self._device, self._get_generator, self._job, self._concepts = device, generator, job, concepts
        self._stopped, self._preview, self._on_wait = stopped, preview, on_wait

    @property
    def base(self):
        return self._device.run(self._get_generator).base

    def with_concepts(self, concepts: ConceptSource) -> QueuedGenerator:
        """Return the same generator with other concepts: a recipe's, a run's."""
        return QueuedGenerator(
            self._device, self._get_generator, self._job, self._stopped, self._preview, self._on_wait, concepts
        )

    def generate(
        self,
        request: GenerateRequest,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[GeneratedImage]:
        """Generate images as `Generator.generate` does; raises Interrupted also if the page stopped the job."""

        def is_stopped() -> bool:
            return self._stopped() or cancelled()

        images: Iterator[GeneratedImage] | None = None

        def next_image() -> GeneratedImage | None:
            nonlocal images
            if images is None:
                generator = self._get_generator()
                generator = generator.with_concepts(self._concepts) if self._concepts else generator
                images = generator.generate(request, progress, is_stopped, self._preview)
            return next(images, None)

        while True:
            with self._job.turn(is_stopped, self._on_wait):
                image = self._device.run(next_image)
            if image is None:
                return
            yield image


class JobViewUpdate(TypedDict, total=False):
    """Changed fields of a `JobView`."""

    message: str
    results: tuple[SessionImage, ...]
    progress: float
    preview: tuple[Image.Image, ...]


@dataclass(frozen=True)
class JobContext:
    """What a `RenderJob` works with. generator: takes turns with other jobs; update_view: sends changed fields of the
    `JobView`; notes: sentences for the final message."""

    generator: QueuedGenerator
    workspace: Workspace
    page: str
    user: str | None
    stop: threading.Event
    update_view: Callable[[JobViewUpdate], None]
    results: list[SessionImage]
    hidden: list[bool]
    notes: list[str]

    @property
    def outputs(self) -> Outputs:
        return self.workspace.user_outputs(self.user)

    def stopped(self) -> bool:
        return self.stop.is_set()

    def progress(self, done: int, total: int) -> None:
        self.update_view({"message": f"Generating: step {done} of {total}", "progress": done / total})

    def save_image(self, image: GeneratedImage) -> None:
        """Save a finished image and show it."""
        self.add_image(self.outputs.save(image.to_png()), image.hidden, f"seed {image.seed}")

    def add_image(self, path: Path, hidden: bool = False, caption: str = "") -> None:
        """Show an image that is already saved."""
        self.results.append(
            SessionImage(path, self.workspace.publish(path, self.page), caption or path.stem.partition("-")[0])
        )
        self.hidden.append(hidden)
        self.update_view({"results": tuple(self.results), "preview": ()})
