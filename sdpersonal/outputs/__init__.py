"""A folder that pictures are kept in, one folder a day, and a page to look through it."""

from .folder import Outputs
from .page import write_page

__all__ = ["Outputs", "write_page"]
