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
from ...errors import Interrupted, PersonalError
from ...image_grid import png
from ...image_grid import sheet as labelled
from ...outputs import Outputs
from ...prompts import show
from .drawing import draw
from .page import Place, Tile, page
from .sheet import Sheet

if TYPE_CHECKING:
    from ...generation import Generator

_LARGEST = 16_000  # pixels of a sheet's side: what browsers and WebP take
_TILES = (96, 256)  # pixels: the least and the most that a picture gets
_EMPTY = (236, 238, 240)


@dataclass(frozen=True)
class Kept:
    """page: the HTML; sheets: a PNG each; pictures: each one's file; hidden: whether the base's checker flagged it."""

    page: Path
    sheets: tuple[Path, ...]
    pictures: tuple[Path, ...]
    hidden: tuple[bool, ...]


def draw_sheet(
    sheet: Sheet,
    generator: Generator,
    outputs: Outputs,
    private: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Kept:
    """Draw all of it. private: no recipe in any picture, nor on the page.

    Raises as `draw` does; what was drawn until then is kept, on a sheet with empty places.
    """
    tiles: dict[Place, Tile] = {}
    saved: dict[Path, bool] = {}
    try:
        for cells, picture in draw(generator, sheet.cells, progress, cancelled):
            path = outputs.save(picture.png(private))
            saved[path] = picture.hidden
            mark = path.stem.partition("-")[2]
            tile = Tile(picture.image, None if private else picture.recipe, mark)
            tiles |= {(cell.x, cell.y, cell.z): tile for cell in cells}
    except PersonalError as error:
        kept = None
        with suppress(PersonalError):  # a full disk was told already
            kept = _written(sheet, tiles, saved) if saved else None
        if kept and isinstance(error, Interrupted):
            done = f"{len(tiles)} of {len(sheet.cells)}"
            raise Interrupted(f"Stopped. {done} pictures are on the sheet {show(str(kept.page), 300)}.") from None
        raise
    return _written(sheet, tiles, saved)


def images(sheet: Sheet, tiles: Mapping[Place, Tile]) -> Iterator[Image.Image]:
    """The sheets with their labels; places without a tile are grey."""
    columns, rows, sheets = sheet.shape
    largest = max(max(tile.image.size) for tile in tiles.values())
    side = max(_TILES[0], min(_TILES[1], largest, _LARGEST // (max(columns, rows) + 2)))
    empty = Image.new("RGB", (side, side), _EMPTY)
    titles = [f"{show(sheet.prompt, 1000)} · {label}" for label in sheet.labels("z")] or [show(sheet.prompt, 1000)]
    for z, title in zip(range(sheets), titles, strict=True):
        places = [[(x, y, z) for x in range(columns)] for y in range(rows)]
        pictures = [[tiles[at].image if at in tiles else empty for at in row] for row in places]
        yield labelled(pictures, sheet.labels("y"), sheet.labels("x"), side, title)


def _written(sheet: Sheet, tiles: Mapping[Place, Tile], saved: Mapping[Path, bool]) -> Kept:
    first = next(iter(saved))
    number = first.name.partition("-")[0]
    place = first.with_name(f"{number}-sheet.html")
    storage.write_text(place, page(sheet, tiles))
    sheets = []
    for z, image in enumerate(images(sheet, tiles)):
        sheets.append(first.with_name(f"{number}-sheet{f'-{z + 1}' if z else ''}.png"))
        storage.write_bytes(sheets[-1], png(image))
    return Kept(place, tuple(sheets), tuple(saved), tuple(saved.values()))
