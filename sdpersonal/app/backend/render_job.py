"""What one job of drawing works with: a generator that gives way to others, and a way to tell the page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...config import GenerateRequest
from ...generation import GeneratedImage, Generator
from ...outputs import Outputs
from .device_worker import DeviceWorker
from .job_queue import Job
from .workspace import Workspace


@dataclass(frozen=True)
class SessionImage:
    """A picture on the page. kept: where it stays; shown: the copy that the page may serve."""

    kept: Path
    shown: Path
    caption: str


class QueuedGenerator:
    """A generator as drawing functions want it, which has the device only while it computes."""

    def __init__(
        self,
        device: DeviceWorker,
        generator: Callable[[], Generator],
        job: Job,
        stopped: Callable[[], bool],
        preview: Callable[[list[Image.Image]], None],
        waits: Callable[[int], None],
        concepts: object = None,
    ):
        self._device, self._get_generator, self._job, self._concepts = device, generator, job, concepts
        self._stopped, self._preview, self._waits = stopped, preview, waits

    @property
    def base(self):
        return self._device.do(self._get_generator).base

    def of(self, concepts: object) -> QueuedGenerator:
        """The same with other concepts: a recipe's, a run's."""
        return QueuedGenerator(
            self._device, self._get_generator, self._job, self._stopped, self._preview, self._waits, concepts
        )

    def draw(
        self,
        request: GenerateRequest,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[GeneratedImage]:
        """As `Generator.draw`; raises Interrupted also where the page has stopped it."""

        def ended() -> bool:
            return self._stopped() or cancelled()

        pictures: Iterator[GeneratedImage] | None = None

        def draw_next() -> GeneratedImage | None:
            nonlocal pictures
            if pictures is None:
                generator = self._get_generator()
                generator = generator.of(self._concepts) if self._concepts else generator
                pictures = generator.draw(request, progress, ended, self._preview)
            return next(pictures, None)

        while True:
            with self._job.turn(ended, self._waits):
                picture = self._device.do(draw_next)
            if picture is None:
                return
            yield picture


@dataclass(frozen=True)
class JobContext:
    """generator: in turn; progress(done, total); tell(change): fields of a `View` that are new; notes: sentences that
    are said when all is drawn."""

    generator: QueuedGenerator
    workspace: Workspace
    page: str
    user: str | None
    stop: threading.Event
    tell: Callable[[dict], None]
    results: list[SessionImage]
    hidden: list[bool]
    notes: list[str]

    @property
    def outputs(self) -> Outputs:
        return self.workspace.pictures(self.user)

    def stopped(self) -> bool:
        return self.stop.is_set()

    def progress(self, done: int, total: int) -> None:
        self.tell({"message": f"Drawing: step {done} of {total}", "done": done / total})

    def keep(self, picture: GeneratedImage) -> None:
        """A picture is ready."""
        self.show(self.outputs.save(picture.png()), picture.hidden, f"seed {picture.seed}")

    def show(self, kept: Path, hidden: bool = False, caption: str = "") -> None:
        """A picture that was kept is ready."""
        self.results.append(
            SessionImage(kept, self.workspace.copy(kept, self.page), caption or kept.stem.partition("-")[0])
        )
        self.hidden.append(hidden)
        self.tell({"results": tuple(self.results), "preview": ()})
