"""Keep the outputs folder: saved images, one subfolder a day, an index of them, an HTML page, and a trash."""

from .folder import Outputs
from .html_page import write_page
from .index import ImageIndex, SavedImage
from .trash import OutputsTrash

__all__ = ["ImageIndex", "Outputs", "OutputsTrash", "SavedImage", "write_page"]
