"""Generate the images of a grid: equal ones only once, consecutive seeds in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...config import GenerateRequest
from .request import GridCell

if TYPE_CHECKING:
    from ...generation import GeneratedImage, ImageGenerator

_MAX_BATCH = 100  # images of one request


@dataclass(frozen=True)
class CellBatch:
    """A request, and for each of its images the cells that show it."""

    request: GenerateRequest
    cells: tuple[tuple[GridCell, ...], ...]


def plan_batches(cells: Sequence[GridCell]) -> list[CellBatch]:
    """Plan as few requests as possible for all cells: those that differ only by consecutive seeds are one."""
    groups: dict[GenerateRequest, dict[int, list[GridCell]]] = {}
    for cell in cells:
        field = cell.request.seed_field
        bare = cell.request.model_copy(update={field: 0})
        groups.setdefault(bare, {}).setdefault(getattr(cell.request, field), []).append(cell)
    return [_make_batch(bare, run) for bare, seeds in groups.items() for run in _consecutive_seeds(seeds)]


def generate_cells(
    generator: ImageGenerator,
    cells: Sequence[GridCell],
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[tuple[GridCell, ...], GeneratedImage]]:
    """Yield each image as soon as it is ready, with the cells that show it.

    progress(done, total) counts pixels times steps, so that the time left is right if steps or sizes differ. Raises
    as `Generator.generate`; the caller keeps what was yielded before.
    """
    planned = plan_batches(cells)
    shown_by = [iter(batch.cells) for batch in planned]
    for i, image in generate_all(generator, [batch.request for batch in planned], progress, cancelled):
        yield next(shown_by[i]), image


def generate_all(
    generator: ImageGenerator,
    requests: Sequence[GenerateRequest],
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, GeneratedImage]]:
    """Yield the images of several requests, each with its request's index.

    progress and errors as `Generator.generate`.
    """
    total = round(sum(request.num_images * request.work_per_image for request in requests))
    done = 0.0
    for i, request in enumerate(requests):
        work = request.num_images * request.work_per_image

        def advance(step: int, steps: int, before: float = done, work: float = work) -> None:
            progress(round(before + work * step / steps), total)

        for image in generator.generate(request, advance, cancelled):
            yield i, image
        done += work


def _consecutive_seeds(seeds: dict[int, list[GridCell]]) -> list[dict[int, list[GridCell]]]:
    runs: list[dict[int, list[GridCell]]] = []
    for seed in sorted(seeds):
        if not runs or seed - 1 not in runs[-1] or len(runs[-1]) == _MAX_BATCH:
            runs.append({})
        runs[-1][seed] = seeds[seed]
    return runs


def _make_batch(bare: GenerateRequest, run: dict[int, list[GridCell]]) -> CellBatch:
    request = bare.model_copy(update={bare.seed_field: min(run), "num_images": len(run)})
    return CellBatch(request, tuple(tuple(cells) for cells in run.values()))
