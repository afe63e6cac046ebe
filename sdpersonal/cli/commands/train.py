"""`train ...`."""

from __future__ import annotations

from ...config import DreamboothSettings, InversionSettings, Training
from .. import batch_training
from .output import is_main_process, say, silently


def train(asked: Training | batch_training.Several) -> int:
    from ...training import train as teach

    if isinstance(asked, batch_training.Several):
        return batch_training.teach_all(asked, teach, say=say if is_main_process() else silently)
    teach(asked, say=say)
    return 0


COMMANDS = {
    "train textual-inversion": (train, InversionSettings),
    "train dreambooth": (train, DreamboothSettings),
}
