"""Hold the result of an X/Y/Z grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from PIL import Image

from ..display.image_grid import encode_png
from ..errors import printable
from ..generation import GeneratedImage, GeneratedImages
from ..outputs import Outputs, write_page
from ..playground.xyz_grid import GridTile, SavedGrid, XyzGridRequest, grid_images, save_grid

if TYPE_CHECKING:
    from .options import StrPath


@dataclass(frozen=True, repr=False)
class XyzGrid:
    """A generated X/Y/Z grid, which a notebook shows as its labelled grid.

    cells: the image at each (column, row, grid), counted from 0.
    """

    request: XyzGridRequest
    cells: Mapping[tuple[int, int, int], GeneratedImage]

    def __repr__(self) -> str:
        columns, rows, grids = self.request.shape
        return f"<XyzGrid {columns} x {rows} x {grids}, {printable(self.request.prompt, 100)!r}>"

    @property
    def images(self) -> GeneratedImages:
        """All images, those that several cells show only once."""
        return GeneratedImages({id(image): image for image in self.cells.values()}.values())

    @cached_property
    def grids(self) -> list[Image.Image]:
        """The labelled grids: one for each value of z."""
        tiles = {at: GridTile(image.image, image.recipe, "") for at, image in self.cells.items()}
        return list(grid_images(self.request, tiles))

    def save(self, folder: StrPath = "outputs", private: bool = False) -> SavedGrid:
        """Save as `sdpersonal sheet` does: each image, the labelled grids, and a page of them.

        private: save no recipes. Raises: UserError, DiskFull.
        """
        outputs = Outputs(folder)
        paths = {id(image): outputs.save(image.to_png(private)) for image in self.images}
        tiles = {
            at: GridTile(image.image, None if private else image.recipe, paths[id(image)].stem.partition("-")[2])
            for at, image in self.cells.items()
        }
        saved = save_grid(self.request, tiles, {paths[id(image)]: image.hidden for image in self.images})
        write_page(outputs)
        return saved

    def _repr_png_(self) -> bytes:
        return encode_png(self.grids[0])
