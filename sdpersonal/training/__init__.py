"""Train a concept from photos: `train(settings)` adds it to the library."""

from .run import TrainResult, train

__all__ = ["TrainResult", "train"]
