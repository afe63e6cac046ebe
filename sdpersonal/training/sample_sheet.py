"""The sample sheet of a new concept, drawn as a user will draw, and its thumbnail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .. import storage
from ..concepts.concept import Concept, thumbnail_bytes
from ..config import Request
from ..errors import NoMemory
from ..generation import Generator
from ..image_grid import png, sheet
from ..models import StableDiffusion
from ..models.oom import told
from ..prompts import Token
from .prompt_templates import PREVIEWS

SHEET = "samples.png"
_SEEDS = 3


def with_pictures(
    concept: Concept, base: StableDiffusion, run: Path, say: Callable[[str], None]
) -> tuple[Concept, Path | None]:
    """The concept with its first picture for a thumbnail, and the sheet. Without both where there is no memory for
    drawing: what was learned is worth more than its pictures."""
    try:
        with told("drawing", "", base.device):
            return _drawn(concept, base, run)
    except NoMemory:
        pass
    say("There is no memory left for sample pictures; the concept is kept without. Draw some with sdpersonal generate.")
    return concept, None


def _drawn(concept: Concept, base: StableDiffusion, run: Path) -> tuple[Concept, Path]:
    prompts = [one.format(concept.token) for one in PREVIEWS[concept.card.kind]]
    generator = Generator(base, _Only(concept))
    rows = [[picture.image for picture in generator.draw(Request(prompt=prompt, n=_SEEDS))] for prompt in prompts]
    page = run / SHEET
    storage.write_bytes(page, png(sheet(rows, prompts, [f"seed {i}" for i in range(_SEEDS)])))
    return replace(concept, thumbnail=thumbnail_bytes(rows[0][0])), page


class _Only:
    """A library of one concept that is not yet in any."""

    def __init__(self, concept: Concept):
        self._concept = concept

    def get(self, token: Token) -> Concept:
        return self._concept
