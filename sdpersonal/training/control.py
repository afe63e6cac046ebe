"""Commands to a running training: a word in the file `ask` of its folder, which the run deletes when it reads it.

    echo sample > runs/me-duck-dreambooth-lora/ask    generate sample images now
    echo keep > runs/me-duck-dreambooth-lora/ask      end here, with the best checkpoint so far

The main process polls once a step; the others receive the command with that step's losses.
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
    """A command to the run; negative, since it is sent between processes in place of a signal's number."""

    NOTHING = 0
    SAMPLE = -1
    KEEP = -2


def send(run: Path, command: Command) -> None:
    """Send a command to the run in this folder; it replaces one that was not read yet."""
    storage.write_text(run / COMMAND_FILE, command.name.lower() + "\n")


def poll(run: Path) -> Command:
    """Read and delete the command, if any; without one this costs a `stat`. Unknown words are dropped."""
    path = run / COMMAND_FILE
    if not os.path.lexists(path):
        return Command.NOTHING
    word = ""
    with suppress(UserError):  # it is a folder, or larger than a word
        word = storage.read_bytes(path, _MAX_BYTES).decode(errors="replace")
    storage.remove(path)
    return Command.__members__.get(word.strip().upper(), Command.NOTHING)
