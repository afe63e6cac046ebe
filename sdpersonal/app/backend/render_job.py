"""What one job of drawing works with: a generator that gives way to others, and a way to tell the page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...config import Request
from ...generation import Generator, Picture
from ...outputs import Outputs
from .device_worker import Device
from .job_queue import Job
from .workspace import House


@dataclass(frozen=True)
class Result:
    """A picture on the page. kept: where it stays; shown: the copy that the page may serve."""

    kept: Path
    shown: Path
    caption: str


class InTurn:
    """A generator as drawing functions want it, which has the device only while it computes."""

    def __init__(
        self,
        device: Device,
        generator: Callable[[], Generator],
        job: Job,
        stopped: Callable[[], bool],
        preview: Callable[[list[Image.Image]], None],
        waits: Callable[[int], None],
        concepts: object = None,
    ):
        self._device, self._make, self._job, self._concepts = device, generator, job, concepts
        self._stopped, self._preview, self._waits = stopped, preview, waits

    @property
    def base(self):
        return self._device.do(self._make).base

    def of(self, concepts: object) -> InTurn:
        """The same with other concepts: a recipe's, a run's."""
        return InTurn(self._device, self._make, self._job, self._stopped, self._preview, self._waits, concepts)

    def draw(
        self,
        request: Request,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Picture]:
        """As `Generator.draw`; raises Interrupted also where the page has stopped it."""

        def ended() -> bool:
            return self._stopped() or cancelled()

        pictures: Iterator[Picture] | None = None

        def draw_next() -> Picture | None:
            nonlocal pictures
            if pictures is None:
                generator = self._make()
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
class Desk:
    """generator: in turn; progress(done, total); tell(change): fields of a `View` that are new; notes: sentences that
    are said when all is drawn."""

    generator: InTurn
    house: House
    page: str
    user: str | None
    stop: threading.Event
    tell: Callable[[dict], None]
    results: list[Result]
    hidden: list[bool]
    notes: list[str]

    @property
    def outputs(self) -> Outputs:
        return self.house.pictures(self.user)

    def stopped(self) -> bool:
        return self.stop.is_set()

    def progress(self, done: int, total: int) -> None:
        self.tell({"message": f"Drawing: step {done} of {total}", "done": done / total})

    def keep(self, picture: Picture) -> None:
        """A picture is ready."""
        self.show(self.outputs.save(picture.png()), picture.hidden, f"seed {picture.seed}")

    def show(self, kept: Path, hidden: bool = False, caption: str = "") -> None:
        """A picture that was kept is ready."""
        self.results.append(Result(kept, self.house.copy(kept, self.page), caption or kept.stem.partition("-")[0]))
        self.hidden.append(hidden)
        self.tell({"results": tuple(self.results), "preview": ()})
