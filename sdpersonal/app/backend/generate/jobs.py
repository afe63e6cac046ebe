"""Create the jobs of the Generate tab: images of one request, endless generation, an XYZ grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....config import GenerateRequest
from ....config.scheduler_table import difference
from ....errors import UserError
from ....playground.endless_series import EndlessSeries, generate_endless
from ....playground.xyz_grid import XyzGridRequest, generate_grid
from ..generation_service import RenderJob
from ..render_job import JobContext

MAX_ENDLESS = 500  # images; a user who is still there presses Endless again
# Axes on offer: label, (axis name, example of its values).
AXES = {
    "Seed": ("seed", "1..4"),
    "Words in place of {}": ("words", "samurai|cowboy|saint"),
    "Prompt": ("prompt", "a cat|a dog"),
    "Strength of a concept": ("strength", "<me/duck>: 0..1 by 0.25"),
    "Window of a concept": ("window", "<me/ink>: 0-1, 0-0.6, 0.4-1"),
    "Another concept": ("concept", "<me/duck>: <me/cat>, a toy duck"),
    "Steps": ("steps", "5, 10, 25, 50"),
    "Guidance scale": ("guidance", "1, 3, 5, 7.5"),
}
NO_AXIS = "None"


def generate_job(form: Mapping[str, Any]) -> RenderJob:
    """Create a job that generates the images of a `GenerateRequest` with these fields. Raises UserError."""
    request = GenerateRequest(**form)

    def work(job: JobContext) -> None:
        job.notes.extend(filter(None, [difference(request.scheduler)]))
        for image in job.generator.generate(request, job.progress):
            job.save_image(image)

    return work


def endless_job(form: Mapping[str, Any], wildcards: Path | None = None) -> RenderJob:
    """Create a job that generates endlessly, each image with other alternatives and another seed. Raises UserError."""
    request = GenerateRequest(**{**form, "num_images": 1, "all_combinations": False})
    series = EndlessSeries(request, wildcards)

    def work(job: JobContext) -> str:
        job.notes.extend(filter(None, [difference(request.scheduler)]))
        saved_images = generate_endless(
            series, job.generator, job.outputs, MAX_ENDLESS, progress=job.progress, cancelled=job.stopped
        )
        for path, hidden in saved_images:
            job.add_image(path, hidden)
        return f"{MAX_ENDLESS} images are enough for now. Press Endless to continue."

    return work


def axis_text(kind: object, values: object) -> str | None:
    """Return the axis as text for `XyzGridRequest`, None for no axis. Raises UserError if it is not on offer.

    Checkpoints are not on offer: their axis names a folder, and text from a page must not.
    """
    if kind in (None, "", NO_AXIS):
        return None
    if not isinstance(kind, str) or kind not in AXES or not isinstance(values, str):
        raise UserError("That is not an axis of the grid.", f"Choose one of: {', '.join(AXES)}.")
    name, example = AXES[kind]
    target, colon, rest = values.rpartition(": ") if name in ("strength", "window", "concept") else ("", "", values)
    if name in ("strength", "window", "concept") and not colon:
        raise UserError(f"The values of {kind} start with the concept.", f"For example {example}")
    return f"{name} {target}: {rest}".replace(" :", ":")


def grid_job(form: dict, x: object, x_values: object, y: object, y_values: object) -> RenderJob:
    """Create a job that generates a grid. form: as for `generate_job`; its number of images is ignored. Raises
    UserError."""
    fields = {name: value for name, value in form.items() if name not in ("num_images", "all_combinations")}
    across = axis_text(x, x_values)
    if across is None:
        raise UserError("Choose what changes from column to column.", "For example Seed, 1..4.")
    request = XyzGridRequest(**fields, x=across, y=axis_text(y, y_values))

    def work(job: JobContext) -> str:
        grid = generate_grid(request, job.generator, job.outputs, False, _report_progress(job), job.stopped)
        for image in grid.grids:
            job.add_image(image)
        return f"A grid of {len(grid.images)} images, each saved as well. The page with all of them: {grid.page.name}"

    return work


def _report_progress(job: JobContext):
    def progress(done: int, total: int) -> None:
        job.update_view(
            {"message": f"Generating the grid: {done / max(1, total):.0%}", "progress": done / max(1, total)}
        )

    return progress
