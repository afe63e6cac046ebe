"""Give the images that wait to the replicas: fairly among users, what fits in one batch together, and again if a
replica dies.

All of it runs in one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ...errors import UserError
from ...generation import MAX_BATCH_SIZE
from ..fair_share import FairShare
from ..image_task import ImageTask
from .messages import Event, Failed, Made, Preview, ReplicaLost, ReplicaPool, Step

log = logging.getLogger(__name__)
MAX_USER_REQUESTS = 200  # of one user that wait or run
MAX_USER_IMAGES = 5000
MAX_REQUESTS = 2000  # of all users
MAX_UNREAD = 16  # images that a client has not read yet; more of its images are not begun
MAX_TRIES = 3  # of an image whose replica dies
SILENCE_SECONDS = 900.0  # without any step, after which a replica counts as lost
ALIVE_SECONDS = 1.0  # between two events of a request


class Busy(UserError):
    """Too much waits already. is_own: of this user."""

    def __init__(self, message: str, is_own: bool = True):
        super().__init__(message, "Wait until some images are done, and ask again.")
        self.is_own = is_own


@dataclass(eq=False)
class PendingImage:
    """An image of a request. index: its place in the request; tries: replicas that died with it; batch: its run."""

    generation: Generation
    index: int
    task: ImageTask
    tries: int = 0
    batch: asyncio.Task | None = None
    is_made: bool = False

    @property
    def is_over(self) -> bool:
        return self.is_made or self.generation.has_ended

    @property
    def kind(self) -> Hashable:
        """What is equal for images that can be in one batch. After a death each is alone: one may be its cause."""
        return id(self) if self.tries else self.task.batch_key


class Generation:
    """One request of a user: its images, and the events for its client."""

    def __init__(self, user: str, tasks: Sequence[ImageTask]):
        self.user = user
        self.images = [PendingImage(self, index, task) for index, task in enumerate(tasks)]
        self.error: UserError | None = None
        self.is_cancelled = False
        self._made = 0
        self._unread: deque[tuple[int, bytes]] = deque()
        self._previews: dict[int, bytes] = {}
        self._shares: dict[int, float] = {}  # of the images that are being generated, how much is done
        self._steps = 0  # of an image
        self._progress: tuple[int, int] | None = None
        self._changed = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        return self.is_cancelled or self.error is not None or self._made == len(self.images)

    @property
    def is_read_slowly(self) -> bool:
        return len(self._unread) >= MAX_UNREAD

    def add(self, image: PendingImage, png: bytes) -> None:
        image.is_made = True
        self._made += 1
        self._unread.append((image.index, png))
        self._previews.pop(image.index, None)
        self._shares.pop(image.index, None)
        self._changed.set()

    def show(self, image: PendingImage, jpeg: bytes) -> None:
        self._previews[image.index] = jpeg
        self._changed.set()

    def count(self, image: PendingImage, step: Step) -> None:
        """Note a step of an image. The total is in steps of one image: those of a batch are done at the same time."""
        self._shares[image.index] = step.done / max(1, step.total)
        self._steps = max(self._steps, step.total)
        total = self._steps * len(self.images)
        done = min(total, round((self._made + sum(self._shares.values())) * self._steps))
        if self._progress is None or done > self._progress[0]:  # it does not go back when a replica dies
            self._progress = done, total
            self._changed.set()

    def forget(self, image: PendingImage) -> None:
        """Note that the steps of an image are lost."""
        self._shares.pop(image.index, None)
        self._previews.pop(image.index, None)

    def fail(self, error: UserError) -> None:
        if not self.has_ended:
            self.error = error
            self._changed.set()

    async def events(self, dispatcher: Dispatcher) -> AsyncIterator[dict[str, Any]]:
        """Yield the events for the client, one at least every second, until it has ended. Images are bytes."""
        reported = None
        while True:
            has_ended, count = self.has_ended, 0
            if self._progress != reported and self._progress is not None:
                reported, count = self._progress, 1
                yield {"event": "progress", "done": reported[0], "total": reported[1]}
            for event in self._take_images():
                count += 1
                yield event
                dispatcher.wake()
            if has_ended:
                yield self._last_event()
                return
            if not count:
                ahead = dispatcher.ahead_of(self)
                yield {"event": "alive"} if ahead is None else {"event": "waiting", "ahead": ahead}
            await _wait(self._changed)

    def _take_images(self) -> list[dict[str, Any]]:
        previews, self._previews = self._previews, {}
        events: list[dict[str, Any]] = [
            {"event": "preview", "index": index, "jpeg": jpeg} for index, jpeg in sorted(previews.items())
        ]
        images, self._unread = self._unread, deque()
        return events + [{"event": "image", "index": index, "png": png} for index, png in images]

    def _last_event(self) -> dict[str, Any]:
        if self.error is not None:
            return {"event": "error", "message": self.error.message, "hint": self.error.hint}
        return {"event": "done", "images": self._made}


@dataclass
class _UserQueue:
    """The images of one user that wait, in order, and the requests that have not ended."""

    waiting: deque[PendingImage] = field(default_factory=deque)
    generations: list[Generation] = field(default_factory=list)


class Dispatcher:
    """The requests of all users. `run` must run meanwhile."""

    def __init__(self, pool: ReplicaPool, batch_size: int = MAX_BATCH_SIZE):
        self._pool, self._batch_size = pool, batch_size
        self._queues: dict[str, _UserQueue] = {}
        self._fair_share = FairShare()
        self._batches: dict[asyncio.Task, list[PendingImage]] = {}
        self._woken = asyncio.Event()

    @property
    def generating(self) -> int:
        """The number of images that are being generated."""
        return sum(map(len, self._batches.values()))

    @property
    def waiting(self) -> int:
        """The number of images that wait."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    def wake(self) -> None:
        """Look again at what can be begun."""
        self._woken.set()

    def check_room(self, user: str, images: int = 1) -> None:
        """Raise Busy if the user cannot ask for so many more images now."""
        queue = self._queues.get(user, _UserQueue())
        if len(queue.generations) >= MAX_USER_REQUESTS:
            raise Busy(f"You have {MAX_USER_REQUESTS} requests waiting already.")
        if len(queue.waiting) + images > MAX_USER_IMAGES:
            raise Busy(f"You have {len(queue.waiting):,} images waiting already, and {MAX_USER_IMAGES:,} may wait.")
        if sum(len(other.generations) for other in self._queues.values()) >= MAX_REQUESTS:
            raise Busy("Too many requests of all users are waiting.", is_own=False)

    def submit(self, generation: Generation) -> None:
        """Put a request at the end of its user's queue, for which `check_room` has found room."""
        queue = self._queues.setdefault(generation.user, _UserQueue())
        queue.generations.append(generation)
        queue.waiting.extend(generation.images)
        self.wake()

    def end(self, generation: Generation) -> None:
        """Forget a request that has ended, or whose client is gone: what waits of it is removed, and what is being
        generated ends at its next step, unless images of others are in the same batch."""
        if not generation.has_ended:
            generation.is_cancelled = True
        self._end_unwanted_batches(generation)
        queue = self._queues.get(generation.user)
        if queue is not None and generation in queue.generations:
            queue.generations.remove(generation)
            queue.waiting = deque(image for image in queue.waiting if image.generation is not generation)
            if not queue.generations:
                del self._queues[generation.user]

    def ahead_of(self, generation: Generation) -> int | None:
        """Return about how many images are before the first of a request, as if all users had equally many running;
        None once one has begun."""
        queue, first = self._queues.get(generation.user), generation.images[0]
        if queue is None or first not in queue.waiting:
            return None
        place = queue.waiting.index(first)
        others = (len(other.waiting) for other in self._queues.values() if other is not queue)
        return place + sum(min(place + 1, length) for length in others)

    async def run(self) -> None:
        """Give images to replicas until cancelled."""
        try:
            while True:
                self._woken.clear()
                while len(self._batches) < self._pool.slots() and (images := self._take()):
                    self._begin(images)
                await _wait(self._woken)  # replicas come and go without a word
        finally:
            for task in self._batches:
                task.cancel()

    # --- batches ------------------------------------------------------------------------------------------------------

    def _take(self) -> list[PendingImage]:
        """Take the next batch: an image of the user whose turn it is, and what fits to it of all users in turn."""
        batch: list[PendingImage] = []
        running = Counter(image.generation.user for images in self._batches.values() for image in images)
        while len(batch) < self._batch_size:
            next_images = {user: _next_image(queue, batch) for user, queue in self._queues.items()}
            images = {user: image for user, image in next_images.items() if image is not None}
            if not images:
                break
            user = self._fair_share.choose(images, running)
            batch.append(images[user])
            self._queues[user].waiting.remove(images[user])
        return batch

    def _begin(self, images: list[PendingImage]) -> None:
        task = asyncio.create_task(self._generate(images))
        self._batches[task] = images
        for image in images:
            image.batch = task
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task) -> None:
        del self._batches[task]
        self.wake()

    async def _generate(self, images: list[PendingImage]) -> None:
        try:
            async with aclosing(self._pool.generate([image.task for image in images])) as events:
                await _follow(images, events, self._end_unwanted_batches)
            if not all(image.is_over for image in images):
                raise ReplicaLost("It ended without all images.")
        except (ReplicaLost, TimeoutError) as error:
            log.warning("A replica was lost: %s", error or "it was silent")
            self._try_again([image for image in images if not image.is_over])
        except Exception as error:
            log.error("A batch failed.", exc_info=error)
            for image in images:
                image.generation.fail(UserError("The fleet failed; its log says why.", "Try again."))

    def _try_again(self, images: list[PendingImage]) -> None:
        """Put images back to the beginning of their queues, but for those that too many replicas died with."""
        for image in reversed(images):
            image.tries += 1
            image.generation.forget(image)
            if image.tries >= MAX_TRIES:
                problem = f"{MAX_TRIES} machines failed one after the other at this image."
                image.generation.fail(UserError(problem, "Ask for a smaller size, or look at the fleet's log."))
            elif (queue := self._queues.get(image.generation.user)) is not None:
                queue.waiting.appendleft(image)

    def _end_unwanted_batches(self, generation: Generation) -> None:
        for task in {image.batch for image in generation.images} & self._batches.keys():
            if task is not None and all(image.is_over for image in self._batches[task]):
                task.cancel()


def _next_image(queue: _UserQueue, batch: list[PendingImage]) -> PendingImage | None:
    """Return the first image of a queue whose client reads, if it can be in the batch."""
    image = next((image for image in queue.waiting if not image.generation.is_read_slowly), None)
    return image if image and (not batch or image.kind == batch[0].kind) else None


async def _follow(images: list[PendingImage], events: AsyncGenerator[Event, None], on_failed: Any) -> None:
    """Hand on what a replica answers. Raises TimeoutError after a long silence, ReplicaLost."""
    while True:
        async with asyncio.timeout(SILENCE_SECONDS):
            event = await anext(events, None)
        if event is None:
            return
        if isinstance(event, Step):
            for image in images:
                if not image.is_over:
                    image.generation.count(image, event)
        elif isinstance(event, Preview):
            for index, jpeg in event.jpegs.items():
                if not images[index].is_over:
                    images[index].generation.show(images[index], jpeg)
        elif not images[event.index].is_over:
            image = images[event.index]
            if isinstance(event, Made):
                image.generation.add(image, event.png)
            elif isinstance(event, Failed):
                image.generation.fail(UserError(event.message, event.hint))
                on_failed(image.generation)


async def _wait(event: asyncio.Event) -> None:
    """Wait until the event is set, for a second at most, and clear it."""
    try:
        async with asyncio.timeout(ALIVE_SECONDS):
            await event.wait()
    except TimeoutError:
        return
    event.clear()
