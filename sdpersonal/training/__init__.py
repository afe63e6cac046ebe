"""`train(settings)`: photos to a concept in the library."""

from .run import TrainResult, train

__all__ = ["TrainResult", "train"]
