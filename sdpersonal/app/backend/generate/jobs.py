"""Plan the jobs that make images from the form: images of one request, endless generation, an XYZ grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from ....config import GenerateRequest
from ....config.scheduler_table import difference
from ....errors import UserError
from ....generation.request_checks import named
from ....outputs import Outputs
from ....playground.endless_series import EndlessSeries, generate_endless
from ....playground.xyz_grid import XyzGridRequest, generate_grid
from ....playground.xyz_grid.generate_cells import plan_batches
from ....prompts import Wildcards, count_prompts
from ..generation_service import count_text
from ..render_job import JobContext, JobPlan, StepAside

MAX_ENDLESS = 500  # images; a user who is still there presses Endless again
_MAX_TITLE = 80  # characters of a prompt in a job's title
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


def quoted(prompt: str) -> str:
    """Return a prompt in quotation marks, cut if it is long."""
    text = " ".join(prompt.split())
    return f"“{text if len(text) <= _MAX_TITLE else text[: _MAX_TITLE - 1].rstrip() + '…'}”"


def generate_job(form: Mapping[str, Any], wildcards: Path | None = None, skip: int = 0) -> JobPlan:
    """Plan the images of a `GenerateRequest` with these fields, but for the first `skip`. Raises UserError."""
    request = GenerateRequest(**form)
    count = request.num_images
    if request.all_combinations:
        count *= count_prompts(request.prompt, Wildcards(wildcards))
    elif skip:
        request, skip, count = without_first(request, skip), 0, max(0, count - skip)

    def work(job: JobContext) -> None:
        job.notes.extend(filter(None, [difference(request.scheduler)]))
        for image in islice(job.generator.generate(request, job.progress), skip, None):
            job.save_image(image)

    left = max(0, count - skip)
    return JobPlan("generate", f"{count_text(left)} of {quoted(request.prompt)}", left, work)


def without_first(request: GenerateRequest, count: int) -> GenerateRequest:
    """Return a request for the images after the first ones; for one at least. Not for all combinations."""
    first = getattr(request, request.seed_field)
    left = max(1, request.num_images - count)
    return request.model_copy(update={"num_images": left, request.seed_field: first + count})


def endless_job(form: Mapping[str, Any], wildcards: Path | None = None) -> JobPlan:
    """Plan endless generation, each image with other alternatives and another seed. Raises UserError."""
    request = GenerateRequest(**{**form, "num_images": 1, "all_combinations": False})
    series = EndlessSeries(request, wildcards)
    count = 0  # images so far, also before it stepped aside

    def work(job: JobContext) -> str:
        nonlocal count
        images = generate_endless(
            series, job.generator, job.outputs, MAX_ENDLESS - count, progress=job.progress, cancelled=job.stopped
        )
        with closing(images):  # the series is locked while it runs
            for path, hidden in images:
                job.add_image(path, hidden)
                count += 1
                if job.listener.must_step_aside() and count < MAX_ENDLESS:
                    raise StepAside
        job.notes.extend(filter(None, [difference(request.scheduler)]))
        return f"{MAX_ENDLESS} images are enough for now. Press Endless to continue."

    return JobPlan("endless", f"Endless: {quoted(request.prompt)}", None, work)


def axis_text(kind: object, values: object, prompt: object = "") -> str | None:
    """Return the axis as text for `XyzGridRequest`, None for no axis. Raises UserError if it is not on offer.
    prompt: if it names one concept, values without a concept are those of that one.

    Checkpoints are not on offer: their axis names a folder, and text from a page must not.
    """
    if kind in (None, ""):
        return None
    if not isinstance(kind, str) or kind not in AXES or not isinstance(values, str):
        raise UserError("That is not an axis of the grid.", f"Choose one of: {', '.join(AXES)}.")
    name, example = AXES[kind]
    target, colon, rest = values.rpartition(": ") if name in ("strength", "window", "concept") else ("", "", values)
    if name in ("strength", "window", "concept") and not colon:
        target = _only_concept(prompt)
        if not target:
            raise UserError(f"The values of {kind} start with the concept.", f"For example {example}")
    return f"{name} {target}: {rest}".replace(" :", ":")


def _only_concept(prompt: object) -> str:
    """Return the token of the one concept that a prompt names; "" if there is none or several."""
    try:
        tokens = {str(mention.token) for mention in named(prompt)} if isinstance(prompt, str) else set()
    except UserError:
        return ""
    return tokens.pop() if len(tokens) == 1 else ""


def grid_job(form: Mapping[str, Any], x: object, x_values: object, y: object, y_values: object) -> JobPlan:
    """Plan a grid. form: as for `generate_job`; its number of images is ignored. Raises UserError."""
    fields = {name: value for name, value in form.items() if name not in ("num_images", "all_combinations")}
    across = axis_text(x, x_values, form.get("prompt"))
    if across is None:
        raise UserError("Choose what changes from column to column.", "For example Seed, 1..4.")
    request = XyzGridRequest(**fields, x=across, y=axis_text(y, y_values, form.get("prompt")))
    count = sum(batch.request.num_images for batch in plan_batches(request.cells))
    pixels = max(1.0, request.work_per_image / request.denoising_steps)

    def work(job: JobContext) -> str:
        outputs = _ReportedOutputs(job.outputs, job.add_image)

        def progress(done: int, total: int) -> None:
            job.progress(round(done / pixels), max(1, round(total / pixels)))

        grid = generate_grid(request, job.generator, outputs, False, progress, job.stopped)
        job.hidden[:] = grid.hidden
        for image in grid.grids:
            job.listener.on_image(image)
        return f"A grid of {count_text(len(grid.images))}, each saved as well."

    columns, rows, sheets = request.shape
    return JobPlan("grid", f"Grid {columns} × {rows} of {quoted(request.prompt)}", count + sheets, work)


class _ReportedOutputs(Outputs):
    """Outputs that report each image once it is saved."""

    def __init__(self, outputs: Outputs, on_saved: Callable[[Path], None]):
        super().__init__(outputs.folder)
        self._outputs, self._on_saved = outputs, on_saved

    def save(self, data: bytes) -> Path:
        path = self._outputs.save(data)
        self._on_saved(path)
        return path
