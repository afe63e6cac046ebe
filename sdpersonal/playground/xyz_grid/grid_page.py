"""Write a grid as one HTML page, with its images inside."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...display.html import data_url, render_template
from ...image_metadata import Recipe, describe_presence
from .request import XyzGridRequest

CellPosition = tuple[int, int, int]
"""Column, row and sheet (z), counted from 0."""

_TEMPLATE = Path(__file__).with_name("page.html")
_LOSSLESS_MAX_SIDE = 256  # pixels up to which an image is lossless; larger ones would make a page of 100 MB
_QUALITY = 90


@dataclass(frozen=True)
class GridTile:
    """One image of a grid. recipe: None if it is to be left out; file_suffix: the last part of its file's name."""

    image: Image.Image
    recipe: Recipe | None
    file_suffix: str


def render_page(request: XyzGridRequest, tiles: Mapping[CellPosition, GridTile]) -> str:
    """Render the HTML. Positions without a tile stay empty; the same grid and tiles give the same bytes."""
    return render_template(
        _TEMPLATE,
        title=request.prompt,
        axes=[text for side in "xyz" if (text := getattr(request, side))],
        count=len(tiles),
        missing=len(request.cells) - len(tiles),
        columns=request.labels("x"),
        sheets=list(_page_grids(request, tiles)),
    )


def describe_tile(tile: GridTile) -> list[tuple[str, str]]:
    """Return the facts of an image as (name, text)."""
    recipe = tile.recipe
    if recipe is None:
        return [("File", f"*-{tile.file_suffix}.png")]
    base = recipe.base
    facts = {
        "Prompt": recipe.prompt,
        "Chosen from": recipe.template,
        "Not": recipe.negative,
        "Seed": str(recipe.seed)
        if recipe.variation_strength is None
        else f"{recipe.variation_strength:g} from {recipe.seed} to {recipe.variation_seed}",
        "Size": recipe.size + (f", enlarged {recipe.hires_scale:g} times" if recipe.hires_scale > 1 else ""),
        "Steps": f"{recipe.steps} of {recipe.scheduler or recipe.sampler}",
        "Guidance": f"{recipe.guidance:g}" + (f", rescaled by {recipe.rescale:g}" if recipe.rescale else ""),
        "Clip skip": str(recipe.clip_skip) if recipe.clip_skip > 1 else "",
        "Change": f"{recipe.strength:g}" if recipe.init_image or recipe.hires_scale > 1 else "",
        "Base": f"{base.name} ({base.sha256[:8]})",
        "Concepts": "\n".join(
            f"{concept.token} {concept.strength:g} ({concept.sha256[:8]})" for concept in recipe.concepts
        ),
        "Attention": "\n".join(describe_presence(recipe)),
        "File": f"*-{tile.file_suffix}.png",
    }
    return [(name, text) for name, text in facts.items() if text]


def _page_grids(request: XyzGridRequest, tiles: Mapping[CellPosition, GridTile]) -> Iterator[tuple[str, list]]:
    """Yield (label, rows) of each sheet; a row is (label, [(data URL, facts) or None])."""
    columns, rows, sheets = request.shape
    row_labels = request.labels("y") or [""]
    for z, label in zip(range(sheets), request.labels("z") or [""], strict=True):
        tile_rows = ([tiles.get((x, y, z)) for x in range(columns)] for y in range(rows))
        cells = [[(_data_url(tile.image), describe_tile(tile)) if tile else None for tile in row] for row in tile_rows]
        yield label, list(zip(row_labels, cells, strict=True))


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", lossless=max(image.size) <= _LOSSLESS_MAX_SIDE, quality=_QUALITY)
    return data_url(buffer.getvalue(), "image/webp")
