"""A sheet drawn and kept: every picture in the outputs folder, and beside the first of them the sheet itself.

outputs/2026-11-23/00012-abcdef12.png      the pictures, as `generate` keeps them
outputs/2026-11-23/00012-sheet.html        all of them, one page that needs nothing else
outputs/2026-11-23/00012-sheet.png         with labels; 00012-sheet-2.png, ... where there are several
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ... import storage
from ...errors import Interrupted, UserError
from ...image_grid import encode_png
from ...image_grid import labelled_grid as labelled
from ...outputs import Outputs
from ...prompts import printable
from .drawing import generate_cells
from .page import CellPosition, GridTile, page
from .sheet import XyzGridRequest

if TYPE_CHECKING:
    from ...generation import Generator

_MAX_SIDE = 16_000  # pixels of a sheet's side: what browsers and WebP take
_TILE_RANGE = (96, 256)  # pixels: the least and the most that a picture gets
_EMPTY_COLOUR = (236, 238, 240)


@dataclass(frozen=True)
class SavedGrid:
    """page: the HTML; sheets: a PNG each; pictures: each one's file; hidden: whether the base's checker flagged it."""

    page: Path
    sheets: tuple[Path, ...]
    pictures: tuple[Path, ...]
    hidden: tuple[bool, ...]


def generate_grid(
    sheet: XyzGridRequest,
    generator: Generator,
    outputs: Outputs,
    private: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> SavedGrid:
    """Draw all of it. private: no recipe in any picture, nor on the page.

    Raises as `draw` does; what was drawn until then is kept, on a sheet with empty places.
    """
    tiles: dict[CellPosition, GridTile] = {}
    saved: dict[Path, bool] = {}
    try:
        for cells, picture in generate_cells(generator, sheet.cells, progress, cancelled):
            path = outputs.save(picture.png(private))
            saved[path] = picture.hidden
            mark = path.stem.partition("-")[2]
            tile = GridTile(picture.image, None if private else picture.recipe, mark)
            tiles |= {(cell.x, cell.y, cell.z): tile for cell in cells}
    except UserError as error:
        result = None
        with suppress(UserError):  # a full disk was told already
            result = _save_grid(sheet, tiles, saved) if saved else None
        if result and isinstance(error, Interrupted):
            done = f"{len(tiles)} of {len(sheet.cells)}"
            raise Interrupted(
                f"Stopped. {done} pictures are on the sheet {printable(str(result.page), 300)}."
            ) from None
        raise
    return _save_grid(sheet, tiles, saved)


def grid_images(sheet: XyzGridRequest, tiles: Mapping[CellPosition, GridTile]) -> Iterator[Image.Image]:
    """The sheets with their labels; places without a tile are grey."""
    columns, rows, sheets = sheet.shape
    largest = max(max(tile.image.size) for tile in tiles.values())
    side = max(_TILE_RANGE[0], min(_TILE_RANGE[1], largest, _MAX_SIDE // (max(columns, rows) + 2)))
    empty = Image.new("RGB", (side, side), _EMPTY_COLOUR)
    titles = [f"{printable(sheet.prompt, 1000)} · {label}" for label in sheet.labels("z")] or [
        printable(sheet.prompt, 1000)
    ]
    for z, title in zip(range(sheets), titles, strict=True):
        places = [[(x, y, z) for x in range(columns)] for y in range(rows)]
        pictures = [[tiles[at].image if at in tiles else empty for at in row] for row in places]
        yield labelled(pictures, sheet.labels("y"), sheet.labels("x"), side, title)


def _save_grid(sheet: XyzGridRequest, tiles: Mapping[CellPosition, GridTile], saved: Mapping[Path, bool]) -> SavedGrid:
    first = next(iter(saved))
    number = first.name.partition("-")[0]
    place = first.with_name(f"{number}-sheet.html")
    storage.write_text(place, page(sheet, tiles))
    sheets = []
    for z, image in enumerate(grid_images(sheet, tiles)):
        sheets.append(first.with_name(f"{number}-sheet{f'-{z + 1}' if z else ''}.png"))
        storage.write_bytes(sheets[-1], encode_png(image))
    return SavedGrid(place, tuple(sheets), tuple(saved), tuple(saved.values()))
