"""Read what an image or a text tells about how it was generated."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .... import storage
from ....config import GenerateRequest
from ....errors import UserError
from ....image_metadata import MAX_IMAGE_BYTES, Foreign, Recipe, describe_presence, read_recipe
from ....image_metadata.read_infotext import parse_infotext

MAX_TEXT = 100_000  # characters of a pasted text
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


def read_settings(path: Path) -> ImageSettings:
    """Read the settings from an image of this or another program. Raises UserError if it has none."""
    with _reading:
        recipe = read_recipe(storage.read_bytes(path, MAX_IMAGE_BYTES), "This image")
    return settings_of(recipe)


def read_pasted_settings(text: str) -> ImageSettings:
    """Read the settings from A1111's text, which many programs write and show. Raises UserError for other text."""
    if len(text) > MAX_TEXT:
        raise UserError(f"The text is longer than {MAX_TEXT:,} characters.")
    foreign = parse_infotext(text)
    if foreign is None:
        raise UserError("This text has no generation settings.", "Copy all of it, to the line that begins with Steps.")
    return settings_of(foreign)


def settings_of(recipe: Recipe | Foreign) -> ImageSettings:
    """Return the settings of a recipe."""
    if isinstance(recipe, Foreign):
        prompt = {"prompt": recipe.words} if recipe.words else {}  # with the unusable parts, for the user to change
        return ImageSettings(_UNUSED | dict(recipe.fields) | prompt, recipe.notes, same=False)
    notes = ("Its init image is not stored in it.",) if recipe.init_image else ()
    fields = recipe.model_dump(include=set(GenerateRequest.model_fields) - {"init_image", "mask"})
    return ImageSettings(
        fields | {"num_images": 1, "fast": recipe.fast or None, "scheduler": recipe.scheduler or None}, notes
    )


def recipe_facts(recipe: Recipe | Foreign) -> list[tuple[str, str]]:
    """Return a recipe as (name, text) for people."""
    if isinstance(recipe, Foreign):
        return [("Settings", recipe.text), ("Program", recipe.program)]
    variation = (
        f", variation strength {recipe.variation_strength:g} towards seed {recipe.variation_seed}"
        if recipe.variation_strength
        else ""
    )
    facts = {
        "Prompt": recipe.prompt,
        "Template": recipe.template,
        "Negative prompt": recipe.negative,
        "Seed": f"{recipe.seed}{variation}",
        "Steps": str(recipe.steps),
        "Guidance scale": f"{recipe.guidance:g}",
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
    return [(name, text) for name, text in facts.items() if text]


def format_facts(recipe: Recipe | Foreign) -> str:
    """Return a recipe as text for people."""
    if isinstance(recipe, Foreign):
        return recipe.text
    return "\n".join(f"{name}: {text}" for name, text in recipe_facts(recipe))


def has_areas(recipe: Recipe | Foreign | None) -> bool:
    """Return whether a recipe tells where its concepts are in the image."""
    return isinstance(recipe, Recipe) and any(concept.presence for concept in recipe.concepts)
