"""Generate an XYZ grid from the page's form: one axis for the columns, one for the rows."""

from __future__ import annotations

from ....errors import UserError
from ....playground.xyz_grid import XyzGridRequest, generate_grid
from ..generation_service import RenderJob
from ..render_job import JobContext

# Axes on offer: label, (axis name, example of its values).
AXES = {
    "Seed": ("seed", "1..4"),
    "Words in the place of {}": ("words", "samurai|cowboy|saint"),
    "Whole prompts": ("prompt", "a cat|a dog"),
    "Strength of a concept": ("strength", "<me/duck>: 0..1 by 0.25"),
    "Time of a concept": ("window", "<me/ink>: 0-1, 0-0.6, 0.4-1"),
    "One concept for another": ("concept", "<me/duck>: <me/cat>, a toy duck"),
    "Steps": ("steps", "5, 10, 25, 50"),
    "Guidance": ("guidance", "1, 3, 5, 7.5"),
}
NO_AXIS = "Nothing"


def axis_text(kind: object, values: object) -> str | None:
    """Return the axis as text for `XyzGridRequest`, None for no axis. Raises UserError if it is not on offer.

    Checkpoints are not on offer: their axis names a folder, and text from a page must not.
    """
    if kind in (None, "", NO_AXIS):
        return None
    if not isinstance(kind, str) or kind not in AXES or not isinstance(values, str):
        raise UserError("That is nothing that a sheet can change.", f"Choose one of: {', '.join(AXES)}.")
    name, example = AXES[kind]
    target, colon, rest = values.rpartition(": ") if name in ("strength", "window", "concept") else ("", "", values)
    if name in ("strength", "window", "concept") and not colon:
        raise UserError(f"{kind} needs the concept first.", f"For example {example}")
    return f"{name} {target}: {rest}".replace(" :", ":")


def grid_job(form: dict, x: object, x_values: object, y: object, y_values: object) -> RenderJob:
    """Create a job that generates a grid. form: as for `generate_job`; its number of images is ignored. Raises
    UserError."""
    fields = {name: value for name, value in form.items() if name not in ("n", "every")}
    across = axis_text(x, x_values)
    if across is None:
        raise UserError("Say what changes from column to column.", "For example Seed, 1..4.")
    request = XyzGridRequest(**fields, x=across, y=axis_text(y, y_values))

    def work(job: JobContext) -> str:
        grid = generate_grid(request, job.generator, job.outputs, False, _report_progress(job), job.stopped)
        for sheet in grid.grids:
            job.add_image(sheet)
        return f"A sheet of {len(grid.images)} pictures, each of them kept too. The page with all: {grid.page.name}"

    return work


def _report_progress(job: JobContext):
    def progress(done: int, total: int) -> None:
        job.update_view({"message": f"Drawing the sheet: {done / max(1, total):.0%}", "done": done / max(1, total)})

    return progress
