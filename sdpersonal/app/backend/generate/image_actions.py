"""Act on one image: mark it as a favourite, download it, vary it, reuse its settings."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .... import storage
from ....config import GenerateRequest
from ....display.image_grid import encode_png
from ....errors import UserError
from ....generation.image import draw_concepts
from ....generation.img2img import open_image
from ....image_metadata import MAX_IMAGE_BYTES, Foreign, Recipe, describe_presence, png_with_recipe, read_recipe
from ....outputs import Outputs
from ....outputs.folder import FAVOURITES_FOLDER
from ....playground.variations import (
    DEFAULT_VARIATION_STRENGTH,
    RecipeThenLibrary,
    favourite_request,
    vary_seed,
    vary_strength,
    vary_words,
)
from ....playground.xyz_grid import generate_all
from ..generation_service import RenderJob
from ..render_job import JobContext, SessionImage
from ..workspace import Workspace

NO_IMAGE = UserError("No image is selected.", "Click one first.")
_reading = threading.Lock()  # one file at a time, whoever sends it: it may have 100 MB
# Fields that other programs leave out when unused: the form must not keep them from the image before.
_UNUSED = {"negative": "", "hires_scale": 1.0, "fast": None, "scheduler": None, "clip_skip": 1, "compose": True}


@dataclass(frozen=True)
class ImageSettings:
    """Generation settings read from an image. fields: of a `GenerateRequest`; notes: what could not be taken over;
    same: whether the same model generates the same image from them."""

    fields: Mapping[str, Any]
    notes: tuple[str, ...]
    same: bool = True


def read_settings(image: object) -> ImageSettings:
    """Read the settings from an image of this or another program. Raises UserError if it has none."""
    if not isinstance(image, str | Path):
        raise NO_IMAGE
    with _reading:
        recipe = read_recipe(storage.read_bytes(Path(image), MAX_IMAGE_BYTES), "This image")
    if isinstance(recipe, Foreign):
        prompt = {"prompt": recipe.words} if recipe.words else {}  # with the unusable parts, for the user to change
        return ImageSettings(_UNUSED | dict(recipe.fields) | prompt, recipe.notes, same=False)
    notes = ("Its init image is not stored in it.",) if recipe.init_image else ()
    fields = recipe.model_dump(include=set(GenerateRequest.model_fields) - {"init_image", "mask"})
    return ImageSettings(
        fields | {"num_images": 1, "fast": recipe.fast or None, "scheduler": recipe.scheduler or None}, notes
    )


def settings_note(settings: ImageSettings) -> str:
    """Return the status text after the settings were copied into the form."""
    promise = (
        ": the same model generates the same image"
        if settings.same
        else ", as far as this program has the same settings"
    )
    return " ".join([f"Its settings are in the form{promise}.", *settings.notes])


def recipe_text(path: Path) -> str:
    """Format the image's recipe for people; "" if it has none."""
    try:
        recipe = read_recipe(storage.read_bytes(path, MAX_IMAGE_BYTES), "This image")
    except UserError:
        return ""
    return recipe.text if isinstance(recipe, Foreign) else _format_recipe(recipe)


def _format_recipe(recipe: Recipe) -> str:
    facts = {
        "Prompt": recipe.prompt,
        "Template": recipe.template,
        "Negative prompt": recipe.negative,
        "Seed": f"{recipe.seed}"
        + (
            f", variation strength {recipe.variation_strength:g} towards seed {recipe.variation_seed}"
            if recipe.variation_strength
            else ""
        ),
        "Steps, guidance scale": f"{recipe.steps}, {recipe.guidance:g}",
        "Scheduler": recipe.scheduler or recipe.sampler,
        "Clip skip": str(recipe.clip_skip) if recipe.clip_skip > 1 else "",
        "Compose": "" if recipe.compose or len(recipe.concepts) < 2 else "no, mixed in one prediction",
        "Size": recipe.size + (f", hires scale {recipe.hires_scale:g}" if recipe.hires_scale > 1 else ""),
        "Init image": f"another image, strength {recipe.strength:g}" if recipe.init_image else "",
        "Concepts": ", ".join(
            f"{concept.token} {concept.strength:g} ({concept.sha256[:8]})" for concept in recipe.concepts
        ),
        "Attention": "; ".join(describe_presence(recipe)),
        "Model": f"{recipe.base.name} ({recipe.base.sha256[:8]})",
    }
    return "\n".join(f"{name}: {text}" for name, text in facts.items() if text)


def has_areas(path: Path) -> bool:
    """Return whether the image's recipe tells where its concepts are."""
    try:
        recipe = read_recipe(storage.read_bytes(path, MAX_IMAGE_BYTES), "This image")
    except UserError:
        return False
    return isinstance(recipe, Recipe) and any(concept.presence for concept in recipe.concepts)


def draw_areas(workspace: Workspace, page: str, result: SessionImage) -> Path:
    """Return a file to serve with the image and, over it, where its concepts are. Raises UserError."""
    recipe = _read_recipe(result)
    if isinstance(recipe, Foreign):
        raise UserError("Another program's image does not tell where its concepts are.")
    target = workspace.session_dir(page) / f"{result.saved.stem}-concepts.png"
    storage.write_bytes(target, encode_png(draw_concepts(open_image(result.saved), recipe)))
    return target


def toggle_favourite(outputs: Outputs, result: SessionImage | None) -> str:
    """Add the image to the favourites or remove it; return what happened."""
    if result is None:
        return str(NO_IMAGE)
    if is_favourite(outputs, result):
        outputs.remove_favourite(result.saved)
        return "Removed from your favourites."
    outputs.add_favourite(result.saved)
    return "Added to your favourites."


def is_favourite(outputs: Outputs, result: SessionImage | None) -> bool:
    if result is None:
        return False
    folder, name = result.saved.parent.name, result.saved.name
    return (name if folder == FAVOURITES_FOLDER else f"{folder}-{name}") in outputs.favourites()


def make_download(workspace: Workspace, page: str, result: SessionImage, private: bool) -> Path:
    """Return a file for download, with the recipe or, if `private`, with nothing but pixels."""
    if not private:
        return result.served
    target = workspace.session_dir(page) / f"{result.saved.stem}-private.png"
    storage.write_bytes(target, png_with_recipe(open_image(result.saved), None))
    return target


def variation_job(
    workspace: Workspace, result: SessionImage | None, share: object = DEFAULT_VARIATION_STRENGTH, n: int = 4
) -> RenderJob:
    """Create a job that generates the same prompt from noise near the image's own. Raises UserError if its recipe
    allows no variations."""
    request = GenerateRequest(prompt="", variation_strength=share, num_images=n)  # validates what the page sent
    recipe = _read_recipe(result)
    return _requests_job(
        workspace,
        recipe,
        vary_seed(
            favourite_request(recipe), request.variation_strength or DEFAULT_VARIATION_STRENGTH, request.num_images
        ),
    )


def change_job(workspace: Workspace, result: SessionImage | None, change: str) -> RenderJob:
    """Create a job with a concept at other strengths, "<me/duck>=0.6,0.8,1", or with other words,
    "beach=snow|space". Raises UserError."""
    target, equals, values = str(change).rpartition("=")
    if not (equals and target.strip()):
        raise UserError("The change must be TARGET=VALUES.", "For example <me/duck>=0.6,0.8,1 or beach=snow|space.")
    recipe, target = _read_recipe(result), target.strip()
    vary = vary_strength if target.startswith("<") and re.match(r"\s*[-+\u2212]?[0-9.]", values) else vary_words
    return _requests_job(workspace, recipe, vary(favourite_request(recipe), target, values.strip()))


def hires_job(workspace: Workspace, result: SessionImage | None, scale: float) -> RenderJob:
    """Create a job that generates the same image larger, in a second pass (hires fix). Raises UserError."""
    recipe = _read_recipe(result)
    if isinstance(recipe, Recipe) and recipe.init_image:
        raise UserError("This image was made from an init image.", "Use it as init image, with a larger size.")
    return _requests_job(
        workspace, recipe, [GenerateRequest(**(recipe.request().model_dump() | {"hires_scale": scale}))]
    )


def _read_recipe(result: SessionImage | None) -> Recipe | Foreign:
    if result is None:
        raise NO_IMAGE
    return read_recipe(storage.read_bytes(result.saved, MAX_IMAGE_BYTES), "This image")


def _requests_job(workspace: Workspace, metadata: Recipe | Foreign, requests: list[GenerateRequest]) -> RenderJob:
    concepts = (
        RecipeThenLibrary(metadata, workspace.library, allow_mismatch=True)
        if isinstance(metadata, Recipe)
        else workspace.library
    )

    def work(job: JobContext) -> None:
        for _, image in generate_all(job.generator.with_concepts(concepts), requests, job.progress, job.stopped):
            job.save_image(image)

    return work
