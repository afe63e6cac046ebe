"""Word the trainer's messages for the page, and say what to change after a training that failed.

The trainer's own messages name flags of the command line; the page has fields instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....config import DreamboothSettings
from ....training.run_dir import to_number
from ..error_text import name_fields
from .run_status import RunStatus

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_LEARNING_RATE = re.compile(r"--lr ([0-9.]+(?:e[-+]?[0-9]+)?)")
_RESOLUTION = re.compile(r"--resolution ([0-9]+)")
_SMALL_RANK = 4
_DIVERGED, _NO_MEMORY = re.compile(r"(loss|gradient) became|embeddings diverged"), re.compile(r"memory", re.I)
_PHOTOS = re.compile(r"photos? .*(unusable|allowed|no photos)|no photos|contains no", re.I)
_MODEL = re.compile(r"\bmodel\b.*(found|downloaded|missing|no such)|--base|not a model", re.I)


@dataclass(frozen=True)
class Advice:
    """What to change. change: new values of the form's fields, as typed text; {} if no field helps."""

    text: str
    change: dict[str, str] = field(default_factory=dict)


def page_text(message: str) -> str:
    """Word a message of the trainer for the page: sentences that say what flags to give are left out, as the page has
    buttons and fields for that; other flags become the names of fields."""
    lines = []
    for line in message.splitlines():
        sentences = [text for text in _SENTENCE.split(line) if not re.match(r"(Try|Add|Give|Use|Leave) .*--", text)]
        if sentences:
            lines.append(name_fields(" ".join(sentences)))
    return "\n".join(lines)


def advice_after(status: RunStatus) -> list[Advice]:
    """Return what to change before a failed training is started again, the most helpful first."""
    if status.state != "failed":
        return []
    message = status.message
    if _DIVERGED.search(message):
        return _lower_rate(message, status.settings)
    if _NO_MEMORY.search(message):
        return _less_memory(message, status.settings)
    if "are too few" in message and "pivotal" in message:
        return [
            Advice("Leave Steps empty: before its LoRA, pivotal tuning trains the embeddings alone.", {"steps": ""})
        ]
    if re.search(r"disk", message, re.I):
        return [Advice("Free some disk space, then press Resume.")]
    if _PHOTOS.search(message):
        return [Advice("Start again with other photos: 4 to 10 of one subject, each in another place.")]
    if _MODEL.search(message):
        return [Advice("Choose another model on the Models tab, then start again.")]
    return []


def fails_again(status: RunStatus) -> bool:
    """Return whether the training would fail in the same way if it were started again as it is."""
    return status.state == "failed" and _DIVERGED.search(status.message) is not None


def _lower_rate(message: str, settings: Mapping[str, Any]) -> list[Advice]:
    proposed = re.search(r"Try --lr ([0-9.]+(?:e[-+]?[0-9]+)?)", message) or None
    used = to_number(settings.get("lr")) or (float(match[1]) if (match := _LEARNING_RATE.search(message)) else 0.0)
    rate = float(proposed[1]) if proposed else used / 10
    if not rate:
        return [Advice("Start again with a learning rate of a tenth.")]
    return [Advice(f"The learning rate was too high. Start again with {rate:g}.", {"lr": f"{rate:g}"})]


def _less_memory(message: str, settings: Mapping[str, Any]) -> list[Advice]:
    advice = [Advice("Close other programs, then press Resume.")]
    side = int(to_number(settings.get("resolution"), 4096)) * 3 // 4 // 64 * 64
    side = int(match[1]) if (match := _RESOLUTION.search(message)) else side
    if side >= 64:
        advice.append(Advice(f"Train on smaller images: {side} pixels.", {"resolution": str(side)}))
    if settings.get("program") != "textual-inversion":
        rank = to_number(settings.get("rank")) or DreamboothSettings.model_fields["rank"].default
        if rank > _SMALL_RANK:
            advice.append(Advice(f"Train a smaller LoRA: rank {_SMALL_RANK}.", {"rank": str(_SMALL_RANK)}))
        advice.append(Advice("Train the embedding alone, by textual inversion.", {"method": "textual-inversion"}))
    return advice
