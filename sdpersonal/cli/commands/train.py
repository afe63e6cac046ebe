"""The commands `train ...`."""

from __future__ import annotations

from ...config import DreamboothSettings, TextualInversionSettings, TrainingSettings
from .. import batch_training
from .output import discard, is_main_process, say


def train(settings: TrainingSettings | batch_training.BatchSettings) -> int:
    from ...training import train as teach

    if isinstance(settings, batch_training.BatchSettings):
        return batch_training.train_all(settings, teach, say=say if is_main_process() else discard)
    teach(settings, log=say)
    return 0


COMMANDS = {
    "train textual-inversion": (train, TextualInversionSettings),
    "train dreambooth": (train, DreamboothSettings),
}
