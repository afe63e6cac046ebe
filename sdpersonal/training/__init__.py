"""Train a concept from photos: `train(settings)` adds it to the library."""

from .run import train
from .train_result import TrainResult

__all__ = ["TrainResult", "train"]
