"""The outputs folder: saved images, one subfolder a day, and an HTML page of them."""

from .folder import Outputs
from .html_page import write_page

__all__ = ["Outputs", "write_page"]
