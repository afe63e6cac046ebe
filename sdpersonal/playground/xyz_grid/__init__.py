"""Sheets: one prompt, drawn with one thing changed along each side."""

from .axes import Axis
from .checkpoints import CheckpointConcepts
from .drawing import generate_all, generate_cells
from .saving import SavedGrid, generate_grid
from .sheet import GridCell, XyzGridRequest

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
