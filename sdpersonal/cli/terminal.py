"""Print what the commands say: lines, notes, JSON and progress bars."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..config import GenerateRequest
from ..config.scheduler_table import difference
from ..display.progress import ProgressBar
from ..prompts import Token


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # under accelerate launch only one of the processes prints


def discard(_: str) -> None:
    pass


def say(text: str) -> None:
    print(text, flush=True)


def say_scheduler(request: GenerateRequest) -> None:
    """Print how the scheduler differs from the requested one, if it does."""
    if near := difference(request.scheduler):
        say(near)


def print_note(text: str) -> None:
    """Print what the user should know before the work begins; nothing for ""."""
    if text:
        print(f"note: {text}", file=sys.stderr, flush=True)


def print_json(content: object) -> None:
    say(json.dumps(content, indent=2))


def report_done(as_json: bool, tokens: list[Token], done: str) -> int:
    """Print what was done to which concepts. Returns exit code 0."""
    say(json.dumps({done: [str(token) for token in tokens]}) if as_json else f"{done}: {', '.join(map(str, tokens))}")
    return 0


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, nothing elsewhere: advance(done, total)."""
    with ProgressBar(label) as bar:
        yield bar.advance
