"""Sheets: one prompt, drawn with one thing changed along each side."""

from .axes import Axis
from .checkpoints import WithCheckpoints
from .drawing import draw, in_turn
from .saving import Kept, draw_sheet
from .sheet import Cell, Sheet

__all__ = ["Axis", "Cell", "Kept", "Sheet", "WithCheckpoints", "draw", "draw_sheet", "in_turn"]
