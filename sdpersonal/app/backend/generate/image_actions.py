"""What can be done with one picture: keep it, take it along, vary it, take its settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .... import storage
from ....config import Request
from ....errors import PersonalError
from ....generation.img2img import open_picture
from ....image_metadata import MAX_PICTURE, Foreign, Recipe, png, read_recipe
from ....outputs import Outputs
from ....outputs.folder import FAVOURITES
from ....playground.variations import NEAR, RecipeFirst, near, request_of, strengths, words
from ....playground.xyz_grid import in_turn
from ..generation_service import Work
from ..render_job import Desk, Result
from ..workspace import House

NONE = PersonalError("No picture is chosen.", "Click one first.")
# What other programs leave out where it is not used: it must not stay in the form from the picture before.
_UNUSED = {"negative": "", "enlarge": 1.0, "fast": None, "scheduler": None, "clip_skip": 1}


@dataclass(frozen=True)
class Settings:
    """What a picture says of how it was drawn. fields: of a `Request`; notes: what could not be taken over; same:
    whether the same base draws the same picture from them."""

    fields: Mapping[str, Any]
    notes: tuple[str, ...]
    same: bool = True


def settings_in(picture: object) -> Settings:
    """Of a picture of ours or of another program's, by its path. Raises PersonalError for one without settings."""
    if not isinstance(picture, str | Path):
        raise NONE
    found = read_recipe(storage.read_bytes(Path(picture), MAX_PICTURE), "This picture")
    if isinstance(found, Foreign):
        prompt = {"prompt": found.words} if found.words else {}  # what cannot be used stands there to be changed
        return Settings(_UNUSED | dict(found.fields) | prompt, found.notes, same=False)
    notes = ("It began from another picture, which is not in it.",) if found.start else ()
    fields = found.model_dump(include=set(Request.model_fields) - {"start", "mask"})
    return Settings(fields | {"n": 1, "fast": found.fast or None, "scheduler": found.scheduler or None}, notes)


def taken(settings: Settings) -> str:
    """What there is to say once they stand in the form."""
    promise = ": the same base draws the same picture" if settings.same else ", as far as they mean the same here"
    return " ".join([f"Its settings are in the form{promise}.", *settings.notes])


def text_of(picture: Path) -> str:
    """Its recipe as a person reads it; "" without one."""
    try:
        found = read_recipe(storage.read_bytes(picture, MAX_PICTURE), "This picture")
    except PersonalError:
        return ""
    return found.text if isinstance(found, Foreign) else _told(found)


def _told(recipe: Recipe) -> str:
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


def favoured(outputs: Outputs, result: Result | None) -> str:
    """Keep a copy apart, or no longer; what happened."""
    if result is None:
        return str(NONE)
    if is_favourite(outputs, result):
        outputs.unfavourite(result.kept)
        return "It is no favourite any more."
    outputs.favourite(result.kept)
    return "It is among your favourites."


def is_favourite(outputs: Outputs, result: Result | None) -> bool:
    if result is None:
        return False
    folder, name = result.kept.parent.name, result.kept.name
    return (name if folder == FAVOURITES else f"{folder}-{name}") in outputs.favourites()


def download(house: House, page: str, result: Result, private: bool) -> Path:
    """A copy to take along, with the recipe in it or without anything but pixels."""
    if not private:
        return result.shown
    place = house.room(page) / f"{result.kept.stem}-private.png"
    storage.write_bytes(place, png(open_picture(result.kept), None))
    return place


def varied(house: House, result: Result | None, share: object = NEAR, n: int = 4) -> Work:
    """Work for the studio: the same prompt from noise near its own. Raises PersonalError where it allows none."""
    checked = Request(prompt="", near=share, n=n)  # numbers are anybody's until here
    found = _recipe(result)
    return _work(house, found, near(request_of(found), checked.near or NEAR, checked.n))


def changed(house: House, result: Result | None, change: str) -> Work:
    """With a concept at other strengths, "<me/duck>=0.6,0.8,1", or other words, "beach=snow|space"."""
    target, equals, values = str(change).rpartition("=")
    if not (equals and target.strip()):
        raise PersonalError("Say what to change to what.", "For example <me/duck>=0.6,0.8,1 or beach=snow|space.")
    found, target = _recipe(result), target.strip()
    vary = strengths if target.startswith("<") and re.match(r"\s*[-+\u2212]?[0-9.]", values) else words
    return _work(house, found, vary(request_of(found), target, values.strip()))


def enlarged(house: House, result: Result | None, times: float) -> Work:
    """The same picture drawn larger, in a second pass."""
    found = _recipe(result)
    if isinstance(found, Recipe) and found.start:
        raise PersonalError("It began from another picture.", "Begin from this one, with a larger size.")
    return _work(house, found, [Request(**(found.request().model_dump() | {"enlarge": times}))])


def _recipe(result: Result | None) -> Recipe | Foreign:
    if result is None:
        raise NONE
    return read_recipe(storage.read_bytes(result.kept, MAX_PICTURE), "This picture")


def _work(house: House, found: Recipe | Foreign, asked: list[Request]) -> Work:
    concepts = RecipeFirst(found, house.library, anyway=True) if isinstance(found, Recipe) else house.library

    def work(desk: Desk) -> None:
        for _, picture in in_turn(desk.generator.of(concepts), asked, desk.progress, desk.stopped):
            desk.keep(picture)

    return work
