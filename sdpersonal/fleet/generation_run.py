"""Generate a list of requests on a fleet, from requests to a folder of images."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import storage
from ..concepts.library import Entry, Library
from ..config import GenerateRequest
from ..errors import DiskFull, UserError
from ..models.loading import kind_of
from ..outputs import Outputs, write_page
from ..prompts import Token
from .cluster import check_installed, connect, local_cpus
from .driver_loop import Summary, WorkerPool
from .generation_driver import GenerationDriver, TrackedImage, TrackedRequest
from .generation_worker import GenerationOptions, GenerationWorker
from .image_saver import ImageSaver
from .image_task import TaskMaker
from .jobs import absolute_base
from .progress import write_images
from .run import FleetOptions, mark, sigterm_as_ctrl_c, start_pool
from .store import StoreError, open_store
from .worker import Ended

Find = Callable[[Token], Entry]


@dataclass(frozen=True)
class ListedRequest:
    """A request of a list. place: how errors name it; line: its number; library: the folder its tokens are meant in."""

    place: str
    line: int
    user: str
    request: GenerateRequest
    library: Path


@dataclass(frozen=True)
class ImageOptions:
    """What is equal for all images. out: the folder for them; the others are those of `sdpersonal generate`."""

    out: Path
    base: str | None = None
    safety: bool = True
    private: bool = False
    wildcards: Path | None = None


def generate_fleet(
    listed: Sequence[ListedRequest],
    image_options: ImageOptions,
    options: FleetOptions,
    say: Callable[[str], None] = print,
    on_summary: Callable[[Summary], None] = lambda summary: None,
) -> tuple[GenerationDriver, int]:
    """Generate the images of requests and save them; return the driver, and the exit code of the worst request.

    An image that an earlier command saved in the same folder is not generated again. Raises UserError, DiskFull;
    KeyboardInterrupt when stopped.
    """
    check_installed()
    storage.check_folder(image_options.out)
    store = open_store(options.uri)
    marker = mark(store)
    driver_options = options.driver_options()
    base = absolute_base(image_options.base)
    kind = kind_of(base) if base or options.address is None else None  # a cluster may have cards where there are none
    maker = TaskMaker(store, driver_options.session, image_options.wildcards, kind)
    outputs = Outputs(image_options.out)
    saver = ImageSaver(store, outputs)
    try:
        requests, images = _track(listed, maker, (base or "", image_options.safety, image_options.private))
        say(f"{len(requests)} requests, {len(images)} images.")

        def show(driver: GenerationDriver) -> None:
            summary = driver.summary()
            on_summary(summary)
            write_images(store, driver, summary)

        worker = GenerationOptions(
            store.uri, marker, base=base, safety=image_options.safety, private=image_options.private
        )
        with _pool(images, saver, worker, options, say) as pool:
            driver = GenerationDriver(requests, images, pool, store, saver, driver_options, say, show)
            code = driver.run()
        driver.remove_copies()
        return driver, code
    finally:
        store.remove(maker.inputs())
        if outputs.days():
            write_page(outputs)


@contextmanager
def _pool(
    images: dict[str, TrackedImage], saver: ImageSaver, worker: GenerationOptions, options: FleetOptions, say: Callable
) -> Iterator[WorkerPool]:
    """Yield workers; none are started where everything is saved already."""
    to_make = len(images) - len(saver.saved(set(images)))
    if not to_make:
        yield _NoWorkers()
        return
    with connect(options.address, local_cpus(options.workers, options.needs.cpus)) as ray, sigterm_as_ctrl_c():
        yield start_pool(ray, GenerationWorker, worker, options, to_make, say)


class _NoWorkers:
    """A pool for a list that is done."""

    def free(self) -> int:
        return 0

    def start(self, task_id: str, number: int) -> None:
        raise RuntimeError("there is nothing to generate")

    def wait(self, seconds: float) -> list[Ended]:
        time.sleep(seconds)
        return []

    def slots(self) -> int:
        return 1

    def stop(self) -> None:
        pass


def _track(
    listed: Sequence[ListedRequest], maker: TaskMaker, context: tuple[object, ...]
) -> tuple[list[TrackedRequest], dict[str, TrackedImage]]:
    """Look up the concepts of all requests; return these and their images by ID. Raises UserError naming the line."""
    requests: list[TrackedRequest] = []
    images: dict[str, TrackedImage] = {}
    finders: dict[Path, Find] = {}
    for entry in listed:
        find = finders.setdefault(entry.library, functools.cache(Library(entry.library).find))
        with _naming(entry.place):
            tasks = maker.tasks(entry.request, find)
        request = TrackedRequest(entry.line, entry.user, [])
        for task in tasks:
            image_id = task.identity(*context)
            image = images.setdefault(image_id, TrackedImage(image_id, task))
            image.requests.append(request)
            request.images.append(image_id)
        requests.append(request)
    return requests, images


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Say in a UserError which line it is about, unless it is about the storage."""
    try:
        yield
    except (StoreError, DiskFull):
        raise
    except UserError as error:
        raise UserError(f"{place}: {error.message}", error.hint) from None
