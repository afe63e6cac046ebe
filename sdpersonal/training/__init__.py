"""`train(settings)`: photos to a concept in the library."""

from .run import Result, train

__all__ = ["Result", "train"]
