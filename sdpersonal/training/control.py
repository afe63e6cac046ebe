"""What somebody asks of a run while it goes on: a word in the file `ask` of its folder, which is gone once it is heard.

    echo sample > runs/me-duck-dreambooth-lora/ask    draw sample pictures now
    echo keep > runs/me-duck-dreambooth-lora/ask      end here, with the best so far

Of several processes the first one looks, once a step; the others hear of it with that step's losses.
"""

from __future__ import annotations

import os
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

from .. import storage
from ..errors import UserError

COMMAND_FILE = "ask"
_MAX_BYTES = 100


class Command(IntEnum):
    """Below zero, since it goes the same way as a signal's number."""

    NOTHING = 0
    SAMPLE = -1
    KEEP = -2


def send(run: Path, wish: Command) -> None:
    """Ask it of the run in this folder; a second wish takes the place of one that was not heard yet."""
    storage.write_text(run / COMMAND_FILE, wish.name.lower() + "\n")


def poll(run: Path) -> Command:
    """What was asked since the last look; costs one `stat` where it is nothing. Other words are dropped."""
    path = run / COMMAND_FILE
    if not os.path.lexists(path):
        return Command.NOTHING
    word = ""
    with suppress(UserError):  # a folder of that name, or what was typed is no text
        word = storage.read_bytes(path, _MAX_BYTES).decode(errors="replace")
    storage.remove(path)
    return Command.__members__.get(word.strip().upper(), Command.NOTHING)
