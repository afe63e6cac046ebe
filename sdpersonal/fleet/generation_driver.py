"""The driver of a generation hands out chunks of images, fairly among users, and saves the images.

A chunk is what a batch holds, of one user or of several; towards the end it is smaller, so that all workers are busy.
A chunk whose worker dies goes to another. After three deaths in a row its images are tried one by one, and the one that
kills its workers fails alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ..errors import UserError
from ..generation import MAX_BATCH_SIZE
from .adder import Adder
from .chunks import ChunkEnd, chunk_key, image_key, stored_images, write_chunk
from .driver_loop import CRASHED, LOST, MAX_DEATHS, SEVERITY, DriverLoop, DriverOptions, Summary, WorkerPool
from .fair_share import FairShare
from .image_saver import ImageSaver, StoredImage
from .image_task import ImageTask
from .jobs import Failure
from .store import Store
from .worker import Ended


class ImageState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    MADE = "made"  # in the store, not yet saved
    DONE = "done"
    FAILED = "failed"


@dataclass
class TrackedRequest:
    """A user's request. line: its number in the user's list; images: the IDs of its images, in order; seconds: from
    its first image's start to its last one's end."""

    line: int
    user: str
    images: list[str]
    failure: Failure | None = None
    node: str = ""
    began: float = 0.0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        code = self.failure.exit_code if self.failure else 0
        return code if code in SEVERITY else CRASHED


@dataclass
class TrackedImage:
    """An image, and whose it is: several requests may ask for the same one."""

    id: str
    task: ImageTask
    requests: list[TrackedRequest] = field(default_factory=list)
    state: ImageState = ImageState.WAITING
    path: Path | None = None

    @property
    def user(self) -> str:
        return self.requests[0].user


@dataclass(frozen=True)
class Chunk:
    """Images that go to a worker together. deaths: of its workers in a row, without an image."""

    images: tuple[TrackedImage, ...]
    deaths: int = 0


class GenerationDriver(DriverLoop):
    """Generates images with a pool of workers.

    on_event: called with a line for the user when something happens; on_change: with this driver, every beat.
    """

    finishes = "adds what is made"

    def __init__(
        self,
        requests: Sequence[TrackedRequest],
        images: Mapping[str, TrackedImage],
        pool: WorkerPool,
        store: Store,
        saver: ImageSaver,
        options: DriverOptions,
        on_event: Callable[[str], None] = lambda line: None,
        on_change: Callable[[GenerationDriver], None] = lambda driver: None,
    ):
        super().__init__(pool, options, on_event)
        self.requests, self.images = requests, images
        self._store, self._saver, self._on_change = store, saver, on_change
        self._adder: Adder[StoredImage, Path | None] = Adder(saver.save)
        self._queue = ImageQueue()
        self._retries: deque[Chunk] = deque()
        self._running: dict[str, Chunk] = {}
        self._lock = threading.Lock()  # of all that changes when a chunk ends
        self._number = 0
        self._made, self._began = 0, 0.0
        self._states = Counter(image.state for image in images.values())  # there may be a hundred thousand

    # --- the state ----------------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        return self._states[ImageState.DONE] + self._states[ImageState.FAILED] == len(self.images)

    def exit_code(self) -> int:
        return max((request.exit_code for request in self.requests), key=SEVERITY.index, default=0)

    def summary(self) -> Summary:
        """Count the images and estimate the time left, at the pace since the first chunk of this command began."""
        done = self._states[ImageState.DONE] + self._states[ImageState.MADE]
        failed, running = self._states[ImageState.FAILED], self._states[ImageState.RUNNING]
        left = len(self.images) - done - failed
        seconds = (time.monotonic() - self._began) / self._made * left if self._made else None
        return Summary(len(self.images), done, failed, running, seconds if left else 0.0)

    def _set(self, image: TrackedImage, state: ImageState) -> None:
        self._states[image.state] -= 1
        self._states[state] += 1
        image.state = state

    def state_of(self, request: TrackedRequest) -> str:
        states = [self.images[image_id].state for image_id in request.images]
        if request.failure:
            return str(ImageState.FAILED)
        if all(state is ImageState.DONE for state in states):
            return str(ImageState.DONE)
        is_begun = any(state is not ImageState.WAITING for state in states)
        return str(ImageState.RUNNING if is_begun else ImageState.WAITING)

    def num_done(self, request: TrackedRequest) -> int:
        return sum(self.images[image_id].state is ImageState.DONE for image_id in request.images)

    def _begin(self) -> None:
        for image_id, path in self._saver.saved(set(self.images)).items():
            self._set(self.images[image_id], ImageState.DONE)
            self.images[image_id].path = path
        waiting = {key for key, image in self.images.items() if image.state is ImageState.WAITING}
        for image_id, files in stored_images(self._store, waiting).items():
            self._take(self.images[image_id], files[0], is_leftover=True)
        for image in self.images.values():
            if image.state is ImageState.WAITING:
                self._queue.add(image)

    def remove_copies(self) -> None:
        """Remove the images from the store that were made twice, by a worker that was taken for dead."""
        done = [key for key, image in self.images.items() if image.state is ImageState.DONE]
        for image_id, files in stored_images(self._store, done).items():
            for sha256 in files:
                self._store.remove(image_key(image_id, sha256))

    def _is_busy(self) -> bool:
        return self._states[ImageState.WAITING] + self._states[ImageState.RUNNING] > 0

    def _has_own_running(self) -> bool:
        return bool(self._running)

    def _look(self) -> None:
        """A chunk is a few images: its end is soon enough."""

    def _on_beat(self) -> None:
        self._on_change(self)

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start_tasks(self) -> None:
        chosen: list[str] = []
        for _ in range(self._pool.free()):
            chunk = self._next_chunk()
            if chunk is None:
                break
            self._number += 1
            chosen.append(f"{self._options.session}-{self._number}")
            self._running[chosen[-1]] = chunk
        failed = self._try_all(self._write_chunk, chosen)
        for chunk_id in chosen:
            if chunk_id in failed:
                self._retries.append(self._running.pop(chunk_id))
                continue
            self._began = self._began or time.monotonic()
            for image in self._running[chunk_id].images:
                self._set(image, ImageState.RUNNING)
                for request in image.requests:
                    request.began = request.began or time.monotonic()
            self._pool.start(chunk_id, 1)

    def _write_chunk(self, chunk_id: str) -> None:
        write_chunk(self._store, chunk_id, {image.id: image.task for image in self._running[chunk_id].images})

    def _next_chunk(self) -> Chunk | None:
        """Return a chunk that lost its worker, or else new images of the users with the fewest running ones."""
        while self._retries:
            chunk = self._retries.popleft()
            if images := self._wanted(chunk.images):
                return Chunk(images, chunk.deaths)
        running = Counter(image.user for chunk in self._running.values() for image in chunk.images)
        while len(self._queue):
            size = max(1, min(MAX_BATCH_SIZE, math.ceil(len(self._queue) / self._pool.slots())))
            if images := self._wanted(self._queue.take(size, running)):
                return Chunk(images)
        return None

    def _wanted(self, images: Sequence[TrackedImage]) -> tuple[TrackedImage, ...]:
        """Give up the images whose requests have all failed; return the others."""
        for image in images:
            if all(request.failure for request in image.requests):
                self._set(image, ImageState.FAILED)
        return tuple(image for image in images if image.state is not ImageState.FAILED)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _end(self, ended: Ended) -> None:
        chunk = self._running.get(ended.task_id)
        if chunk is None:
            return
        end: ChunkEnd | None = ended.answer
        if end is None:  # what was made before the worker died counts
            files = stored_images(self._store, (image.id for image in chunk.images))
            end = ChunkEnd("", {image_id: sha256s[0] for image_id, sha256s in files.items()})
        self._store.remove(chunk_key(ended.task_id))
        with self._lock:
            del self._running[ended.task_id]
            self._note_end(chunk, end, ended)

    def _note_end(self, chunk: Chunk, end: ChunkEnd, ended: Ended) -> None:
        for image in chunk.images:
            self._set(image, ImageState.WAITING)
            for request in image.requests:
                request.node = end.node
            if image.id in end.images:
                self._made += 1
                self._take(image, end.images[image.id])
            elif image.id in end.errors:
                self._fail(image, end.errors[image.id])
        left = tuple(image for image in chunk.images if image.state is ImageState.WAITING)
        if left and ended.answer is None:
            deaths = 1 if end.images else chunk.deaths + 1
            self._end_dead(Chunk(left, deaths), ended.error or LOST)
        elif left:
            self._retries.append(Chunk(left, chunk.deaths))
            if end.problem:
                self._lines.append(f"{end.problem} Trying again.")

    def _take(self, image: TrackedImage, sha256: str, is_leftover: bool = False) -> None:
        self._set(image, ImageState.MADE)
        self._adder.add_later(StoredImage(image.id, sha256, is_leftover))

    def _end_dead(self, chunk: Chunk, detail: str) -> None:
        if chunk.deaths < MAX_DEATHS:
            self._lines.append(f"{_lines(chunk)}: {detail} Another worker takes it.")
            self._retries.append(chunk)
        elif len(chunk.images) > 1:
            self._lines.append(f"{_lines(chunk)}: {detail} The images are tried one by one.")
            self._retries.extend(Chunk((image,)) for image in chunk.images)
        else:
            message = f"It ended its worker {MAX_DEATHS} times, at last: {detail}"
            self._fail(chunk.images[0], Failure(CRASHED, message, "Ask for smaller images, or give workers more."))

    def _fail(self, image: TrackedImage, failure: Failure) -> None:
        """Give up an image, and with it the requests that want it; images that are made stay."""
        self._set(image, ImageState.FAILED)
        for request in image.requests:
            if request.failure is None:
                request.failure = failure
                self._lines.append(f"Line {request.line}: {failure.message}")

    # --- saving -------------------------------------------------------------------------------------------------------

    def _add_finished(self) -> UserError | None:
        for stored, path in self._adder.add_due(self._threads):
            image = self.images[stored.id]
            if path is None:  # damaged in the store
                self._set(image, ImageState.WAITING)
                self._queue.add(image)
                continue
            self._set(image, ImageState.DONE)
            image.path = path
            for request in image.requests:
                if self.num_done(request) == len(request.images):
                    request.seconds = time.monotonic() - request.began if request.began else 0.0
        return self._adder.last_error


class ImageQueue:
    """Waiting images by user and by what a batch can hold."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[Hashable, deque[TrackedImage]]] = {}
        self._fair_share = FairShare()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, image: TrackedImage) -> None:
        self._waiting.setdefault(image.user, {}).setdefault(image.task.batch_key, deque()).append(image)
        self._count += 1

    def take(self, size: int, running: Mapping[str, int]) -> list[TrackedImage]:
        """Take images that a batch can hold, one by one of the user whose turn it is. running: images by user."""
        counts, images = Counter(running), list[TrackedImage]()
        key: Hashable = None
        while len(images) < size:
            users = [user for user, kinds in self._waiting.items() if kinds and (not images or key in kinds)]
            if not users:
                break
            kinds = self._waiting[self._fair_share.choose(users, counts)]
            key = key if images else next(iter(kinds))
            images.append(kinds[key].popleft())
            if not kinds[key]:
                del kinds[key]
            self._count -= 1
        return images


def _lines(chunk: Chunk) -> str:
    """Name the requests of a chunk by their lines."""
    numbers = sorted({request.line for image in chunk.images for request in image.requests})
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"Line {shown}" if len(numbers) == 1 else f"Lines {shown}"
