"""Read the facts of an image for the outputs page from the image once, and cache them beside it.

`.facts.jsonl` in a day's folder has a line for each of its images. It can be deleted at any time, and is not trusted:
an invalid line is read from its image again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import storage
from ..config.text_checks import encoding_problem
from ..errors import UserError
from ..image_metadata import Recipe, describe_presence, read_recipe

CACHE_NAME = ".facts.jsonl"
_VERSION = 2
_HEAD_BYTES = 600_000  # bytes: our recipe and A1111's precede the pixels
_MAX_CACHE_BYTES = 200_000_000  # bytes

Facts = Mapping[str, Any]
"""prompt, negative: text; width, height: pixels; facts: pairs of texts. Without a recipe all texts are empty."""


def load_facts(folder: Path, names: Iterable[str], prune: bool = True) -> dict[str, Facts]:
    """Load the facts of images in one folder, by file name. Facts read for the first time are cached.

    prune: `names` are all images of the folder, so others are removed from the cache.
    """
    known = _read_cache(folder / CACHE_NAME)
    facts_by_name = {name: known[name] if name in known else read_facts(folder / name) for name in names}
    cached = facts_by_name if prune else known | facts_by_name
    if cached.keys() != known.keys():
        lines = (json.dumps({"v": _VERSION, "name": name, **facts}) for name, facts in cached.items())
        storage.write_text(folder / CACHE_NAME, "".join(f"{line}\n" for line in lines))
    return facts_by_name


def read_facts(path: Path) -> Facts:
    """Read the facts of one PNG from its first bytes, whatever they contain."""
    data = b""
    with suppress(UserError), storage.open_to_read(path) as file:
        data = file.read(_HEAD_BYTES)
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    facts = {"prompt": "", "negative": "", "facts": [], "width": width, "height": height}
    with suppress(UserError):
        recipe = read_recipe(data)
        if isinstance(recipe, Recipe):
            facts |= {"prompt": recipe.prompt, "negative": recipe.negative, "facts": list(map(list, _describe(recipe)))}
    return facts


def _describe(recipe: Recipe) -> list[tuple[str, str]]:
    concepts = (f"{concept.token} {concept.strength:g}" for concept in recipe.concepts)
    rows = {
        "Seed": str(recipe.seed),
        "Variation strength": f"{recipe.variation_strength:g} towards seed {recipe.variation_seed}"
        if recipe.variation_strength is not None
        else "",
        "Concepts": ", ".join(concepts),
        "Attention": "; ".join(describe_presence(recipe)),
        "Base": recipe.base.name,
        "Size": recipe.size + (f", enlarged {recipe.hires_scale:g} times" if recipe.hires_scale > 1 else ""),
        "Began from": f"an image, changed by {recipe.strength:g}" if recipe.init_image else "",
        "Steps": str(recipe.steps),
        "Guidance": f"{recipe.guidance:g}",
        "Chosen from": recipe.template,
    }
    return [(name, text) for name, text in rows.items() if text]


def _read_cache(path: Path) -> dict[str, Facts]:
    cached: dict[str, Facts] = {}
    with suppress(UserError):
        for line in storage.read_bytes(path, _MAX_CACHE_BYTES).splitlines():
            with suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if _is_valid_entry(entry):
                    cached[entry["name"]] = {
                        key: entry[key] for key in ("prompt", "negative", "facts", "width", "height")
                    }
    return cached


def _is_valid_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.get("v") != _VERSION:
        return False
    texts, sides, pairs = ("name", "prompt", "negative"), ("width", "height"), entry.get("facts")
    return (
        all(_is_text(entry.get(key)) for key in texts)
        and all(_is_side(entry.get(key)) for key in sides)
        and isinstance(pairs, list)
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_text, pair)) for pair in pairs)
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and encoding_problem(value) is None


def _is_side(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 32  # as a PNG has it
