"""What can be done with one picture: keep it, take it along, vary it, take its settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .... import storage
from ....config import GenerateRequest
from ....errors import UserError
from ....generation.img2img import open_image
from ....image_metadata import MAX_IMAGE_BYTES, Foreign, Recipe, png_with_recipe, read_recipe
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

NO_IMAGE = UserError("No picture is chosen.", "Click one first.")
# What other programs leave out where it is not used: it must not stay in the form from the picture before.
_UNUSED = {"negative": "", "enlarge": 1.0, "fast": None, "scheduler": None, "clip_skip": 1}


@dataclass(frozen=True)
class ImageSettings:
    """What a picture says of how it was drawn. fields: of a `GenerateRequest`; notes: what could not be taken over;
    same: whether the same base draws the same picture from them."""

    fields: Mapping[str, Any]
    notes: tuple[str, ...]
    same: bool = True


def read_settings(picture: object) -> ImageSettings:
    """Of a picture of ours or of another program's, by its path. Raises UserError for one without settings."""
    if not isinstance(picture, str | Path):
        raise NO_IMAGE
    found = read_recipe(storage.read_bytes(Path(picture), MAX_IMAGE_BYTES), "This picture")
    if isinstance(found, Foreign):
        prompt = {"prompt": found.words} if found.words else {}  # what cannot be used stands there to be changed
        return ImageSettings(_UNUSED | dict(found.fields) | prompt, found.notes, same=False)
    notes = ("It began from another picture, which is not in it.",) if found.start else ()
    fields = found.model_dump(include=set(GenerateRequest.model_fields) - {"start", "mask"})
    return ImageSettings(fields | {"n": 1, "fast": found.fast or None, "scheduler": found.scheduler or None}, notes)


def settings_note(settings: ImageSettings) -> str:
    """What there is to say once they stand in the form."""
    promise = ": the same base draws the same picture" if settings.same else ", as far as they mean the same here"
    return " ".join([f"Its settings are in the form{promise}.", *settings.notes])


def recipe_text(picture: Path) -> str:
    """Its recipe as a person reads it; "" without one."""
    try:
        found = read_recipe(storage.read_bytes(picture, MAX_IMAGE_BYTES), "This picture")
    except UserError:
        return ""
    return found.text if isinstance(found, Foreign) else _format_recipe(found)


def _format_recipe(recipe: Recipe) -> str:
    facts = {
        "Prompt": recipe.prompt,
        "Chosen from": recipe.template,
        "Without": recipe.negative,
        "Seed": f"{recipe.seed}" + (f", {recipe.near:g} towards {recipe.near_seed}" if recipe.near else ""),
        "Steps, guidance": f"{recipe.steps}, {recipe.guidance:g}",
        "Scheduler": recipe.scheduler or recipe.sampler,
        "Clip skip": str(recipe.clip_skip) if recipe.clip_skip > 1 else "",
        "Size": recipe.size + (f", enlarged {recipe.enlarge:g} times" if recipe.enlarge > 1 else ""),
        "Began from": f"another picture, changed by {recipe.change:g}" if recipe.start else "",
        "Concepts": ", ".join(f"{each.token} {each.strength:g} ({each.sha256[:8]})" for each in recipe.concepts),
        "Base": f"{recipe.base.name} ({recipe.base.sha256[:8]})",
    }
    return "\n".join(f"{name}: {text}" for name, text in facts.items() if text)


def toggle_favourite(outputs: Outputs, result: SessionImage | None) -> str:
    """Keep a copy apart, or no longer; what happened."""
    if result is None:
        return str(NO_IMAGE)
    if is_favourite(outputs, result):
        outputs.remove_favourite(result.kept)
        return "It is no favourite any more."
    outputs.add_favourite(result.kept)
    return "It is among your favourites."


def is_favourite(outputs: Outputs, result: SessionImage | None) -> bool:
    if result is None:
        return False
    folder, name = result.kept.parent.name, result.kept.name
    return (name if folder == FAVOURITES_FOLDER else f"{folder}-{name}") in outputs.favourites()


def make_download(house: Workspace, page: str, result: SessionImage, private: bool) -> Path:
    """A copy to take along, with the recipe in it or without anything but pixels."""
    if not private:
        return result.shown
    place = house.room(page) / f"{result.kept.stem}-private.png"
    storage.write_bytes(place, png_with_recipe(open_image(result.kept), None))
    return place


def variation_job(
    house: Workspace, result: SessionImage | None, share: object = DEFAULT_VARIATION_STRENGTH, n: int = 4
) -> RenderJob:
    """Work for the studio: the same prompt from noise near its own. Raises UserError where it allows none."""
    checked = GenerateRequest(prompt="", near=share, n=n)  # numbers are anybody's until here
    found = _read_recipe(result)
    return _requests_job(
        house, found, vary_seed(favourite_request(found), checked.near or DEFAULT_VARIATION_STRENGTH, checked.n)
    )


def change_job(house: Workspace, result: SessionImage | None, change: str) -> RenderJob:
    """With a concept at other strengths, "<me/duck>=0.6,0.8,1", or other words, "beach=snow|space"."""
    target, equals, values = str(change).rpartition("=")
    if not (equals and target.strip()):
        raise UserError("Say what to change to what.", "For example <me/duck>=0.6,0.8,1 or beach=snow|space.")
    found, target = _read_recipe(result), target.strip()
    vary = vary_strength if target.startswith("<") and re.match(r"\s*[-+\u2212]?[0-9.]", values) else vary_words
    return _requests_job(house, found, vary(favourite_request(found), target, values.strip()))


def hires_job(house: Workspace, result: SessionImage | None, times: float) -> RenderJob:
    """The same picture drawn larger, in a second pass."""
    found = _read_recipe(result)
    if isinstance(found, Recipe) and found.start:
        raise UserError("It began from another picture.", "Begin from this one, with a larger size.")
    return _requests_job(house, found, [GenerateRequest(**(found.request().model_dump() | {"enlarge": times}))])


def _read_recipe(result: SessionImage | None) -> Recipe | Foreign:
    if result is None:
        raise NO_IMAGE
    return read_recipe(storage.read_bytes(result.kept, MAX_IMAGE_BYTES), "This picture")


def _requests_job(house: Workspace, found: Recipe | Foreign, asked: list[GenerateRequest]) -> RenderJob:
    concepts = RecipeThenLibrary(found, house.library, anyway=True) if isinstance(found, Recipe) else house.library

    def work(desk: JobContext) -> None:
        for _, picture in generate_all(desk.generator.of(concepts), asked, desk.progress, desk.stopped):
            desk.keep(picture)

    return work
