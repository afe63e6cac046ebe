"""Generate and save a grid: every image in the outputs folder, and the grid itself beside the first of them.

outputs/2026-11-23/00012-abcdef12.png      the images, as `generate` saves them
outputs/2026-11-23/00012-sheet.html        all of them, one self-contained page
outputs/2026-11-23/00012-sheet.png         with labels; 00012-sheet-2.png, ... if there are several
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ... import storage
from ...display.image_grid import encode_png, labelled_grid
from ...errors import Interrupted, UserError, printable
from ...outputs import Outputs
from .generate_cells import generate_cells
from .grid_page import CellPosition, GridTile, render_page
from .request import XyzGridRequest

if TYPE_CHECKING:
    from ...generation import ImageGenerator

_MAX_SIDE = 16_000  # pixels of a grid's side, the limit of browsers and WebP
_TILE_RANGE = (96, 256)  # pixels, the smallest and the largest tile
_EMPTY_COLOUR = (236, 238, 240)


@dataclass(frozen=True)
class SavedGrid:
    """Saved files. page: the HTML; grids: PNGs; images: each image's file; hidden: whether it was flagged unsafe."""

    page: Path
    grids: tuple[Path, ...]
    images: tuple[Path, ...]
    hidden: tuple[bool, ...]


def generate_grid(
    request: XyzGridRequest,
    generator: ImageGenerator,
    outputs: Outputs,
    private: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> SavedGrid:
    """Generate the whole grid and save it. private: no recipe in any image, nor on the page.

    Raises as `Generator.generate`; images generated until then are saved, and the grid has empty positions.
    """
    tiles: dict[CellPosition, GridTile] = {}
    saved: dict[Path, bool] = {}
    try:
        for cells, generated in generate_cells(generator, request.cells, progress, cancelled):
            path = outputs.save(generated.to_png(private))
            saved[path] = generated.hidden
            mark = path.stem.partition("-")[2]
            tile = GridTile(generated.image, None if private else generated.recipe, mark)
            tiles |= {(cell.x, cell.y, cell.z): tile for cell in cells}
    except UserError as error:
        result = None
        with suppress(UserError):  # a full disk was reported already
            result = save_grid(request, tiles, saved) if saved else None
        if result and isinstance(error, Interrupted):
            done = f"{len(tiles)} of {len(request.cells)}"
            raise Interrupted(f"Stopped. {done} images are in the grid {printable(str(result.page), 300)}.") from None
        raise
    return save_grid(request, tiles, saved)


def grid_images(request: XyzGridRequest, tiles: Mapping[CellPosition, GridTile]) -> Iterator[Image.Image]:
    """Yield the grids with their labels; positions without a tile are grey."""
    columns, rows, sheets = request.shape
    largest = max(max(tile.image.size) for tile in tiles.values())
    side = max(_TILE_RANGE[0], min(_TILE_RANGE[1], largest, _MAX_SIDE // (max(columns, rows) + 2)))
    empty = Image.new("RGB", (side, side), _EMPTY_COLOUR)
    titles = [f"{printable(request.prompt, 1000)} · {label}" for label in request.labels("z")] or [
        printable(request.prompt, 1000)
    ]
    for z, title in zip(range(sheets), titles, strict=True):
        positions = [[(x, y, z) for x in range(columns)] for y in range(rows)]
        images = [[tiles[at].image if at in tiles else empty for at in row] for row in positions]
        yield labelled_grid(images, request.labels("y"), request.labels("x"), side, title)


def save_grid(request: XyzGridRequest, tiles: Mapping[CellPosition, GridTile], saved: Mapping[Path, bool]) -> SavedGrid:
    first = next(iter(saved))
    number = first.name.partition("-")[0]
    page = first.with_name(f"{number}-sheet.html")
    storage.write_text(page, render_page(request, tiles))
    sheets = []
    for z, image in enumerate(grid_images(request, tiles)):
        sheets.append(first.with_name(f"{number}-sheet{f'-{z + 1}' if z else ''}.png"))
        storage.write_bytes(sheets[-1], encode_png(image))
    return SavedGrid(page, tuple(sheets), tuple(saved), tuple(saved.values()))
