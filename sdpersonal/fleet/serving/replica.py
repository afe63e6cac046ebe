"""Run a replica: a worker that keeps a model loaded, whose images come as events. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from PIL import Image

from ...display.image_grid import encode_jpeg
from ...errors import DiskFull, Interrupted, UserError
from ...models.model_info import ModelInfo
from ..generation_worker import GenerationOptions, GenerationWorker
from ..image_task import ImageTask
from ..store import StoreError
from ..worker import WorkerInfo
from .messages import Event, Failed, Made, Preview, Step

_STEP_SECONDS = 0.2  # between two events about steps


class Replica:
    """One model on one device. All runs in one thread, as torch's threads want it; batches wait for each other."""

    def __init__(self, options: GenerationOptions):
        self._worker = GenerationWorker(options)
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")

    def prepare(self) -> WorkerInfo:
        """Load the model, and check that this machine sees the fleet's storage."""
        return self._device.submit(self._worker.prepare).result()

    def facts(self) -> dict[str, Any]:
        """Return facts of the model."""
        return ModelInfo.of(self._worker.generator.base).facts()

    async def generate(self, tasks: Sequence[ImageTask]) -> AsyncGenerator[Event, None]:
        """Generate one batch; closing the generator ends it at the next step."""
        loop, stop = asyncio.get_running_loop(), threading.Event()
        events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()

        def send(event: Event | BaseException | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            try:
                self._generate(tasks, send, stop)
                send(None)
            except BaseException as error:  # handed on, not lost in this thread
                send(error)

        self._device.submit(work)
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            stop.set()

    def _generate(self, tasks: Sequence[ImageTask], send: Callable[[Event], None], stop: threading.Event) -> None:
        last_step = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal last_step
            if done == total or time.monotonic() - last_step >= _STEP_SECONDS:
                last_step = time.monotonic()
                send(Step(done, total))

        def preview(indices: list[int], pictures: list[Image.Image]) -> None:
            send(Preview({i: encode_jpeg(picture) for i, picture in zip(indices, pictures, strict=True)}))

        try:
            if stop.is_set():
                return
            with closing(self._worker.generate(tasks, progress, stop.is_set, preview)) as results:  # type: ignore[type-var]
                for result in results:
                    if result.image is not None:
                        send(Made(result.index, result.image.to_png()))
                    elif result.error is not None:
                        send(Failed(result.index, result.error.message, result.error.hint))
        except Interrupted:
            return
        except (StoreError, DiskFull) as error:  # of this machine or of the storage: another try may do
            raise RuntimeError(str(error)) from error
        except UserError as error:
            for index in range(len(tasks)):
                send(Failed(index, error.message, error.hint))
