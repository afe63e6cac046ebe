"""Plan the jobs that begin with a saved image's recipe: again, variations, a change, larger."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .... import storage
from ....concepts.library import Library
from ....config import GenerateRequest
from ....errors import UserError
from ....generation.prompt_resolution import ConceptSource
from ....image_metadata import MAX_IMAGE_BYTES, Foreign, Recipe, read_recipe
from ....outputs import SavedImage
from ....playground.reproduce import PinnedConcepts, reproduced_image
from ....playground.variations import (
    DEFAULT_VARIATION_STRENGTH,
    RecipeThenLibrary,
    vary_seed,
    vary_strength,
    vary_words,
)
from ....playground.xyz_grid import generate_all
from ..generation_service import count_text
from ..render_job import JobContext, JobKind, JobPlan
from .generate_form import read_seed
from .jobs import quoted, without_first

HIRES_SCALE = 2.0
# Strength of the second pass: more of it invents new things, and the built-in model knows small images only.
HIRES_STRENGTH, TINY_HIRES_STRENGTH = 0.35, 0.1
DEFAULT_COUNT = 4  # variations


def read_image(image: SavedImage) -> Recipe | Foreign:
    """Read an image's recipe. Raises UserError if it has none."""
    return read_recipe(storage.read_bytes(image.path, MAX_IMAGE_BYTES), "This image")


def redo_job(
    library: Library, image: SavedImage, count: int | None = None, seed: int | None = None, skip: int = 0
) -> JobPlan:
    """Plan to generate an image again from its recipe: the same, or `count` others, from `seed` on or a new one.
    Raises UserError."""
    recipe = read_image(image)
    request = _request(recipe)
    if count is not None:
        request = _changed(request, num_images=count, seed=read_seed(seed), variation_strength=None)
        title = f"{count_text(count)} more like {quoted(request.prompt)}"
        return _requests_job("redo", title, recipe, library, [request], skip)
    if isinstance(recipe, Foreign):
        return _requests_job("redo", f"{quoted(request.prompt)} again", recipe, library, [request], skip)
    concepts = PinnedConcepts(recipe, library, allow_mismatch=True)

    def work(job: JobContext) -> None:
        batch = job.generator.with_concepts(concepts).generate(recipe.batch_request(), job.progress)
        job.save_image(reproduced_image(recipe, list(batch)))

    return JobPlan("redo", f"{quoted(recipe.prompt)} again", 0 if skip else 1, work)


def variation_job(
    library: Library, image: SavedImage, strength: object = None, count: object = None, skip: int = 0
) -> JobPlan:
    """Plan the same prompt from noise near the image's own. Raises UserError if its recipe allows no variations."""
    strength = DEFAULT_VARIATION_STRENGTH if strength is None else strength
    count = DEFAULT_COUNT if count is None else count
    valid = GenerateRequest(prompt="", variation_strength=strength, num_images=count)  # validates what the page sent
    recipe = read_image(image)
    request = _request(recipe)
    if request.variation_strength is not None:
        problem = f"This image is itself a variation of another one, of seed {request.seed}."
        raise UserError(problem, "Vary that one, or use this one as init image.")
    requests = vary_seed(request, valid.variation_strength or DEFAULT_VARIATION_STRENGTH, valid.num_images)
    title = f"{valid.num_images} variation{'s' if valid.num_images > 1 else ''} of {quoted(request.prompt)}"
    return _requests_job("variations", title, recipe, library, requests, skip)


def change_job(library: Library, image: SavedImage, change: object, skip: int = 0) -> JobPlan:
    """Plan the image with a concept at other strengths, "<me/duck>=0.6,0.8,1", or with other words,
    "beach=snow|space". Raises UserError."""
    target, equals, values = str(change or "").rpartition("=")
    if not (equals and target.strip()):
        raise UserError("The change must be TARGET=VALUES.", "For example <me/duck>=0.6,0.8,1 or beach=snow|space.")
    recipe, target = read_image(image), target.strip()
    vary = vary_strength if target.startswith("<") and re.match(r"\s*[-+\u2212]?[0-9.]", values) else vary_words
    request = _request(recipe)
    requests = vary(request, target, values.strip())
    title = f"{quoted(str(change))} in {quoted(request.prompt)}"
    return _requests_job("change", title, recipe, library, requests, skip)


def hires_job(
    library: Library, image: SavedImage, strength: object = None, scale: float = HIRES_SCALE, skip: int = 0
) -> JobPlan:
    """Plan the same image larger, in a second pass (hires fix). strength: of that pass. Raises UserError."""
    recipe = read_image(image)
    if isinstance(recipe, Recipe) and recipe.init_image:
        raise UserError("This image was made from an init image.", "Use it as init image, with a larger size.")
    is_tiny = isinstance(recipe, Recipe) and recipe.base.kind == "tiny"
    default = TINY_HIRES_STRENGTH if is_tiny else HIRES_STRENGTH
    request = _changed(recipe.request(), hires_scale=scale, strength=default if strength is None else strength)
    title = f"{quoted(request.prompt)}, {scale:g} times as large"
    return _requests_job("hires", title, recipe, library, [request], skip)


def _request(recipe: Recipe | Foreign) -> GenerateRequest:
    """Return the image's request. Raises UserError if it began from an image, of which the recipe has only the hash."""
    if isinstance(recipe, Recipe) and recipe.init_image:
        raise UserError("This image was made from an init image, which it does not contain.", "Use it as init image.")
    return recipe.request()


def _changed(request: GenerateRequest, **fields: object) -> GenerateRequest:
    return GenerateRequest(**(request.model_dump() | fields))


def _requests_job(
    kind: JobKind,
    title: str,
    recipe: Recipe | Foreign,
    library: Library,
    requests: Sequence[GenerateRequest],
    skip: int,
) -> JobPlan:
    """Plan the images of several requests, but for the first `skip`."""
    concepts: ConceptSource = (
        RecipeThenLibrary(recipe, library, allow_mismatch=True) if isinstance(recipe, Recipe) else library
    )
    left = list(_without_first(requests, skip))
    pixels = max(1.0, requests[0].work_per_image / requests[0].denoising_steps)

    def work(job: JobContext) -> None:
        def progress(done: int, total: int) -> None:
            job.progress(round(done / pixels), max(1, round(total / pixels)))

        for _, image in generate_all(job.generator.with_concepts(concepts), left, progress, job.stopped):
            job.save_image(image)

    return JobPlan(kind, title, sum(request.num_images for request in left), work)


def _without_first(requests: Sequence[GenerateRequest], count: int) -> Iterator[GenerateRequest]:
    for request in requests:
        if count < request.num_images:
            yield without_first(request, count) if count else request
        count = max(0, count - request.num_images)
