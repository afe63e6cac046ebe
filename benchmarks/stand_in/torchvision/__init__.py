"""The little of torchvision that diffusers' example scripts use, by Pillow and numpy, for machines without it.

Its pictures are Pillow's in torchvision too, so it costs what the original costs.
"""

from . import transforms

__all__ = ["transforms"]
__version__ = "0.0"
