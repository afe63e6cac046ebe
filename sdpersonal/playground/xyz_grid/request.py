"""Define the request of an X/Y/Z grid: a request for one image, and what changes in it along each axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ...config import MAX_IMAGES, MAX_WORK, GenerateRequest
from ...errors import UserError, printable
from ...prompts import MAX_PROMPT
from .axes import Axis
from .checkpoints import CheckpointRun
from .prompt_edits import PLACEHOLDER


class XyzGridRequest(GenerateRequest):
    """One prompt, generated with one thing changed along each axis."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)]
    """Prompt with concept tokens, and {} where an axis puts words: 'a photo of <me/duck> {}'."""
    # As class variables they are no fields, and have no flags: a seed axis gives more images.
    num_images: ClassVar[int] = 1  # type: ignore[misc]  # see above
    all_combinations: ClassVar[bool] = False  # type: ignore[misc]  # see above
    x: str
    """X axis (columns): 'seed: 1..4', 'words: samurai|cowboy', 'strength <me/duck>: 0..1 by 0.25'."""
    y: str | None = None
    """Y axis (rows): 'guidance: 1, 3, ..., 9', 'window <me/ink>: 0-1, 0.4-1', 'prompt: a cat|a dog'."""
    z: str | None = None
    """Z axis (one sheet per value): 'concept <me/duck>: <me/cat>, <me/fox>', 'checkpoint: runs/me-duck-...'."""

    def __init__(self, **values: Any):
        super().__init__(**values)
        self._check()

    @cached_property
    def axes(self) -> dict[str, Axis]:
        """Return the axes by name: x, and y and z if given."""
        return {side: Axis.parse(text) for side in "xyz" if (text := getattr(self, side)) is not None}

    @property
    def runs(self) -> list[CheckpointRun]:
        """Return the runs whose checkpoints are used."""
        return [axis.run for axis in self.axes.values() if axis.run]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the number of columns, rows and sheets."""
        columns, rows, sheets = (len(self.axes[side].values) if side in self.axes else 1 for side in "xyz")
        return columns, rows, sheets

    @cached_property
    def cells(self) -> tuple[GridCell, ...]:
        """Return every cell, sheet by sheet and row by row."""
        return tuple(self._cells())

    def labels(self, side: str) -> list[str]:
        axis = self.axes.get(side)
        return [axis.label(value) for value in axis.values] if axis else []

    def _cells(self) -> Iterator[GridCell]:
        fields = {name: getattr(self, name) for name in GenerateRequest.model_fields}
        sides = [[(axis, value) for value in axis.values] for axis in self.axes.values()]
        positions = product(*(range(count) for count in reversed(self.shape)))
        for (z, y, x), changes in zip(positions, product(*reversed(sides)), strict=True):
            changed = fields
            for axis, value in sorted(changes, key=lambda change: change[0].order):
                changed = axis.apply(changed, value)
            yield GridCell(x, y, z, GenerateRequest(**changed))

    def _check(self) -> None:
        columns, rows, sheets = self.shape
        count = columns * rows * sheets
        if count > MAX_IMAGES:
            raise UserError(
                f"{columns} x {rows} x {sheets} are {count:,} images; up to {MAX_IMAGES} are allowed.",
                "Give fewer values.",
            )
        self._check_targets()
        if (times := sum(cell.request.work_per_image for cell in self.cells) / MAX_WORK) > 1:
            raise UserError(
                f"These {len(self.cells)} images are {times:.0f} times the work that is allowed at once.",
                "Ask for fewer, smaller, or with fewer steps.",
            )

    def _check_targets(self) -> None:
        """Check that the prompt, or what another axis puts there, has what each axis changes; no two may be equal."""
        axes = sorted(self.axes.values(), key=lambda axis: axis.order)
        kinds = [(axis.kind, axis.target) for axis in axes]
        if duplicate := next((kind for i, kind in enumerate(kinds) if kind in kinds[:i]), None):
            name = " ".join(duplicate).strip()
            raise UserError(
                f"Two axes change {printable(name)}.",
                "Put {who} and {where} in the prompt; 'words {who}: cat|dog'." if duplicate[0] == "words" else "",
            )
        for i, axis in enumerate(axes):
            if not any(axis.applies_to(fields) for fields in self._before(axes[:i])):
                raise UserError(
                    f"There is no {printable(axis.target)} in the prompt for {axis.kind} to change.",
                    f"It is {printable(self.prompt)}.",
                )

        if any(PLACEHOLDER in fields["prompt"] for fields in self._before(axes)):
            raise UserError("The prompt has {} and no axis fills it.", "For example --x 'words: cat|dog'.")

    def _before(self, axes: list[Axis]) -> Iterator[dict[str, Any]]:
        for values in product(*(axis.values for axis in axes)):
            fields = {"prompt": self.prompt}
            for axis, value in zip(axes, values, strict=True):
                fields = axis.apply(fields, value)
            yield fields


@dataclass(frozen=True)
class GridCell:
    """An image of a grid: column, row and sheet, counted from 0, and its request."""

    x: int
    y: int
    z: int
    request: GenerateRequest
