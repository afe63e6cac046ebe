"""X/Y/Z grids (sheets): one prompt, generated with one thing changed along each axis."""

from .axes import Axis
from .checkpoints import CheckpointConcepts
from .drawing import generate_all, generate_cells
from .page import GridTile
from .saving import SavedGrid, generate_grid, grid_images, save_grid
from .sheet import GridCell, XyzGridRequest

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
