"""Word the status of a training for the page."""

from __future__ import annotations

import re

from ....display.units import GB, format_minutes
from ....errors import printable
from ....training.run_dir import to_number, to_text
from .run_advice import fails_again, page_text
from .run_status import RunStatus, current_log


def run_text(status: RunStatus, ahead: int) -> tuple[str, str]:
    """Return the status as a title and a sentence or two. ahead: trainings that start before a waiting one."""
    if status.state == "waiting":
        return f"{token_of(status)} waits", _waiting_text(ahead)
    formatters = {
        "starting": _starting_text,
        "training": _training_text,
        "finishing": _finishing_text,
        "done": _done_text,
    }
    return formatters.get(status.state, _ended_text)(status)


def token_of(status: RunStatus) -> str:
    """Return the token that is trained, without a version."""
    return to_text(status.settings.get("token"))


def noun_of(status: RunStatus) -> str:
    """Return the class noun, or the words that the token starts from."""
    nouns = (to_text(status.settings.get(name)) for name in ("class_noun", "init"))
    return next(filter(None, nouns), "the class")


def _waiting_text(ahead: int) -> str:
    if ahead:
        return f"It starts by itself; {ahead} {'training starts' if ahead == 1 else 'trainings start'} before it."
    return "It starts by itself when the training before it has ended."


def _starting_text(status: RunStatus) -> tuple[str, str]:
    text = "Loading the model, checking the photos, testing one step …"
    if cost := _cost_text(status):
        text = f"The dry run is done. {cost} …"
    return f"Preparing to train {token_of(status)}", text


def _training_text(status: RunStatus) -> tuple[str, str]:
    left = f", {format_minutes(status.seconds_left)} left at most" if status.seconds_left is not None else ""
    text = f"Step {status.step:,} of at most {status.steps:,}{left}. It stops earlier if the loss has converged."
    command = status.pending_command.partition(" ")[0]
    text += {"sample": " Samples come after this step.", "keep": " It stops after this step."}.get(command, "")
    return f"Training {token_of(status)}", text


def _finishing_text(status: RunStatus) -> tuple[str, str]:
    text = f"Trained for {status.step:,} steps. Choosing the best checkpoint and generating its samples …"
    return f"Finishing {token_of(status)}", text


def _done_text(status: RunStatus) -> tuple[str, str]:
    duration = f", after {format_minutes(status.seconds)}" if status.seconds else ""
    text = f"It is in your library{duration}. Use {status.token} in a prompt, or try one of these."
    return f"{status.token} is ready", text


def _ended_text(status: RunStatus) -> tuple[str, str]:
    if status.state == "damaged":
        title = f"The training of {token_of(status)} is damaged" if token_of(status) else "A training is damaged"
        folder = printable(str(status.folder), 300)
        return title, f"{status.message}\nIt cannot be resumed. Discard deletes its folder, {folder}."
    title, message = f"{token_of(status)} is not finished", page_text(status.message)
    if status.state == "stopped":
        if not message.startswith("Stopped after step"):
            message += f"\nIt is saved up to step {status.step:,} of {status.steps:,}."
        return title, f"{message}\nPress Resume to go on."
    added = "" if "No concept was made" in message else "Nothing was added. "
    if fails_again(status):
        return title, f"{message}\n{added}".rstrip()
    return title, f"{message}\n{added}Press Resume to try again, or start again with other settings."


def _cost_text(status: RunStatus) -> str:
    memory, seconds = to_number(status.cost.get("held")), to_number(status.cost.get("seconds"))
    if not memory or not seconds:
        return ""
    return f"At most {format_minutes(seconds)}, with {memory / GB:.1f} GB of memory"


# What the trainer's log has after each step of the preparation.
_PREPARATION_MARKS = (re.compile(r"Base: "), re.compile(r"\d{1,4} photos?\b"), re.compile(r"Training <"))


def preparation(status: RunStatus) -> list[dict[str, str]]:
    """Return what a starting training does before its first step; each is "done", "now" or "todo". []: it trains."""
    if status.state != "starting":
        return []
    lines = current_log(status.folder)
    done = sum(any(mark.match(line) for line in lines) for mark in _PREPARATION_MARKS)
    texts = ("Load the model", "Check the photos", "Test one step and generate samples to compare with", "Train")
    return [
        {"text": text, "state": "done" if number < done else "now" if number == done else "todo"}
        for number, text in enumerate(texts)
    ]
