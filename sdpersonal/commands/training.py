"""`train ...`."""

from __future__ import annotations

from .. import concepts_list
from ..config import DreamboothSettings, InversionSettings, Training
from .output import is_main_process, say, silently


def train(asked: Training | concepts_list.Several) -> int:
    from ..training import train as teach

    if isinstance(asked, concepts_list.Several):
        return concepts_list.teach_all(asked, teach, say=say if is_main_process() else silently)
    teach(asked, say=say)
    return 0


COMMANDS = {
    "train textual-inversion": (train, InversionSettings),
    "train dreambooth": (train, DreamboothSettings),
}
