"""Generate X/Y/Z grids (sheets): one prompt, with one thing changed along each axis."""

from .axes import Axis
from .checkpoints import CheckpointConcepts
from .generate_cells import generate_all, generate_cells
from .grid_page import GridTile
from .request import GridCell, XyzGridRequest
from .save_grid import SavedGrid, generate_grid, grid_images, save_grid

__all__ = [
    "Axis",
    "CheckpointConcepts",
    "GridCell",
    "GridTile",
    "SavedGrid",
    "XyzGridRequest",
    "generate_all",
    "generate_cells",
    "generate_grid",
    "grid_images",
    "save_grid",
]
