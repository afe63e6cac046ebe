"""X/Y/Z grids (sheets): one prompt, generated with one thing changed along each axis."""

from .axes import Axis
from .checkpoints import CheckpointConcepts
from .generate_cells import generate_all, generate_cells
from .request import GridCell, XyzGridRequest
from .save_grid import SavedGrid, generate_grid

__all__ = [
    "Axis",
    "CheckpointConcepts",
    "GridCell",
    "SavedGrid",
    "XyzGridRequest",
    "generate_all",
    "generate_cells",
    "generate_grid",
]
