"""Keep a base loaded in a worker, and generate the images of many people's requests, several in one batch.

It is an actor of Ray, or lives in a replica of Ray Serve, but knows nothing of Ray: tests call it as it is.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import storage
from ..errors import DiskFull, Interrupted, UserError
from ..training.run_dir import parse_object
from .chunks import ChunkEnd, chunk_key, image_key, read_chunk
from .concept_cache import MAX_CACHE_BYTES, ConceptCache, PinnedConcepts
from .image_task import ImageTask, read_inputs
from .jobs import Failure
from .store import Store, StoreError, keep_trying, open_store
from .worker import WorkerInfo, WorkerOptions, describe_worker

if TYPE_CHECKING:
    from PIL import Image

    from ..config import GenerateRequest
    from ..generation import GeneratedImage, Generator


@dataclass(frozen=True)
class GenerationOptions(WorkerOptions):
    """base: name of the model, None for this machine's default; safety: whether its safety checker runs; cache_bytes:
    of concepts kept in memory; private: images are stored without recipes."""

    base: str | None = None
    safety: bool = True
    private: bool = False
    cache_bytes: int = MAX_CACHE_BYTES


@dataclass(frozen=True)
class ImageResult:
    """What became of a task. index: of the task in its chunk; image: None if it failed, for the reason in error."""

    index: int
    image: GeneratedImage | None = None
    error: UserError | None = None


class GenerationWorker:
    """Generates images with one base. Concepts are read from the store, and kept by identity.

    `run` and `generate` are called in one thread, `stop` in another.
    """

    def __init__(self, options: GenerationOptions):
        self._options = options
        self._store: Store = open_store(options.uri)
        self._concepts = ConceptCache(self._store, options.cache_bytes, options.patience)
        self._folder = storage.private_folder("sdpersonal-fleet-")
        self._loaded: Generator | None = None
        self._stopping = threading.Event()

    @property
    def concepts(self) -> ConceptCache:
        return self._concepts

    @property
    def generator(self) -> Generator:
        """The generator with the base. Raises UserError if the base cannot be loaded."""
        if self._loaded is None:
            import torch

            from ..generation import Generator
            from ..models import load_base

            options = self._options
            torch.set_num_threads(options.threads)
            if options.gpu_fraction < 1 and torch.cuda.is_available():
                torch.cuda.set_per_process_memory_fraction(options.gpu_fraction)
            self._loaded = Generator(load_base(options.base, safety=options.safety))
        return self._loaded

    def prepare(self) -> WorkerInfo:
        """Load the base, and check that this machine sees the fleet's storage."""
        info = describe_worker(self._store, self._options)
        if info.problem:
            return info
        try:
            base = self.generator.base
        except UserError as error:
            return WorkerInfo(info.node, info.pid, info.version, f"{info.node}: {error.message}", error.hint)
        return WorkerInfo(info.node, info.pid, info.version, base=(base.name, base.version))

    def stop(self) -> None:
        """End the running chunk at its next step; begin no other."""
        self._stopping.set()

    def run(self, chunk_id: str, number: int) -> ChunkEnd:
        """Generate a chunk of the store, and put its images there."""
        end = ChunkEnd(socket.gethostname())
        try:
            tasks = read_chunk(parse_object(self._read(chunk_key(chunk_id)) or b"") or {})
            ids = list(tasks)
            for result in self.generate(list(tasks.values()), cancelled=self._stopping.is_set):
                image_id = ids[result.index]
                if result.image is not None:
                    end.images[image_id] = self._write_image(image_id, result.image)
                elif result.error:
                    end.errors[image_id] = Failure.of(result.error)
        except Interrupted:
            pass
        except UserError as error:  # the store failed, or this machine's disk is full
            return replace(end, problem=f"{end.node}: {error.message}")
        return end

    def _write_image(self, image_id: str, image: GeneratedImage) -> str:
        """Put an image into the store; return the sha256 of its file."""
        data = image.to_png(self._options.private)
        sha256 = storage.sha256(data)
        keep_trying(lambda: self._store.write(image_key(image_id, sha256), data), self._options.patience)
        return sha256

    def generate(
        self,
        tasks: Sequence[ImageTask],
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
        preview: Callable[[list[int], list[Image.Image]], None] | None = None,
    ) -> Iterator[ImageResult]:
        """Generate images, batched whatever their concepts; yield each as it is ready, and each error of a task.

        A task with an error fails alone: the others are then generated one by one. progress, cancelled, preview: as of
        `Generator.generate_many`; an index is that of the task.

        Raises:
            Interrupted: when cancelled.
            StoreError, DiskFull: these say nothing about the tasks.
        """
        ready: dict[int, tuple[GenerateRequest, PinnedConcepts]] = {}
        inputs = self._folder / secrets.token_hex(8)
        try:
            for index, task in enumerate(tasks):
                try:
                    ready[index] = read_inputs(self._read, task, inputs), self._concepts.resolve(task.concepts)
                except (StoreError, DiskFull):
                    raise
                except UserError as error:
                    yield ImageResult(index, error=error)
            yield from self._generate(ready, tasks, progress, cancelled, preview)
        finally:
            if inputs.exists():
                storage.remove(inputs)

    def _read(self, key: str) -> bytes | None:
        return keep_trying(lambda: self._store.read(key), self._options.patience)

    def _generate(
        self,
        ready: dict[int, tuple[GenerateRequest, PinnedConcepts]],
        tasks: Sequence[ImageTask],
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
        preview: Callable[[list[int], list[Image.Image]], None] | None,
    ) -> Iterator[ImageResult]:
        """Generate what is ready together; if that fails, what is left one by one."""
        groups = [list(ready)]
        while groups:
            indices = groups.pop()
            left = set(indices)
            show = None if preview is None else _renumbered(preview, indices)
            requests, sources = [ready[index][0] for index in indices], [ready[index][1] for index in indices]
            images = self.generator.generate_many(requests, progress, cancelled, show, sources)
            try:
                for number, image in images:
                    index = indices[number]
                    left.discard(index)
                    image.recipe = image.recipe.model_copy(update={"template": tasks[index].template})
                    yield ImageResult(index, image)
            except (Interrupted, StoreError, DiskFull):
                raise
            except UserError as error:
                if len(indices) == 1:
                    yield ImageResult(indices[0], error=error)
                else:
                    groups += [[index] for index in sorted(left, reverse=True)]


def _renumbered(
    preview: Callable[[list[int], list[Image.Image]], None], indices: Sequence[int]
) -> Callable[[list[int], list[Image.Image]], None]:
    """Return a preview that is called with indices of requests, and calls the given one with those of tasks."""
    return lambda numbers, pictures: preview([indices[number] for number in numbers], pictures)
