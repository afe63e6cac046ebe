"""The pictures of a sheet: equal ones drawn once, neighbouring seeds in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...config import Request
from .sheet import Cell, work_of

if TYPE_CHECKING:
    from ...generation import Generator, Picture

_AT_ONCE = 100  # pictures that one request may ask for


@dataclass(frozen=True)
class Batch:
    """A request, and for each of its pictures the cells that show it."""

    request: Request
    cells: tuple[tuple[Cell, ...], ...]


def batches(cells: Sequence[Cell]) -> list[Batch]:
    """Requests for all cells, as few as there can be: those that differ in nothing but seeds in a row are one."""
    alike: dict[Request, dict[int, list[Cell]]] = {}
    for cell in cells:
        field = _counted(cell.request)
        bare = cell.request.model_copy(update={field: 0})
        alike.setdefault(bare, {}).setdefault(getattr(cell.request, field), []).append(cell)
    return [_batch(bare, run) for bare, seeds in alike.items() for run in _runs(seeds)]


def draw(
    generator: Generator,
    cells: Sequence[Cell],
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[tuple[Cell, ...], Picture]]:
    """Each picture, as it is ready, with the cells that show it.

    progress(done, total) counts pixels times steps, so that the time left is right where steps or sizes differ. Raises
    as `Generator.draw`; what came before is the caller's.
    """
    planned = batches(cells)
    shown_by = [iter(batch.cells) for batch in planned]
    for i, picture in in_turn(generator, [batch.request for batch in planned], progress, cancelled):
        yield next(shown_by[i]), picture


def in_turn(
    generator: Generator,
    requests: Sequence[Request],
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Picture]]:
    """The pictures of several requests, each with its request's place among them. progress and errors as `draw`."""
    total = round(sum(map(work_of, requests)))
    done = 0.0
    for i, request in enumerate(requests):
        work = work_of(request)

        def advance(step: int, steps: int, before: float = done, work: float = work) -> None:
            progress(round(before + work * step / steps), total)

        for picture in generator.draw(request, advance, cancelled):
            yield i, picture
        done += work


def _counted(request: Request) -> str:
    """The seed that the pictures of one request count up from."""
    return "seed" if request.near is None else "near_seed"


def _runs(seeds: dict[int, list[Cell]]) -> list[dict[int, list[Cell]]]:
    found: list[dict[int, list[Cell]]] = []
    for seed in sorted(seeds):
        if not found or seed - 1 not in found[-1] or len(found[-1]) == _AT_ONCE:
            found.append({})
        found[-1][seed] = seeds[seed]
    return found


def _batch(bare: Request, run: dict[int, list[Cell]]) -> Batch:
    request = bare.model_copy(update={_counted(bare): min(run), "n": len(run)})
    return Batch(request, tuple(tuple(cells) for cells in run.values()))
