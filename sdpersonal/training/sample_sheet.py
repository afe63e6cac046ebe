"""The sample sheet of a new concept, drawn as a user will draw, and its thumbnail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .. import storage
from ..concepts.concept import Concept, make_thumbnail
from ..config import GenerateRequest
from ..errors import OutOfMemory
from ..generation import Generator
from ..image_grid import encode_png, labelled_grid
from ..models import StableDiffusion
from ..models.oom import translate_oom
from ..prompts import Token
from .prompt_templates import SAMPLE_PROMPTS

SHEET_FILE = "samples.png"
_SEEDS = 3


def add_sample_sheet(
    concept: Concept, base: StableDiffusion, run: Path, say: Callable[[str], None]
) -> tuple[Concept, Path | None]:
    """The concept with its first picture for a thumbnail, and the sheet. Without both where there is no memory for
    drawing: what was learned is worth more than its pictures."""
    try:
        with translate_oom("drawing", "", base.device):
            return _generate_sheet(concept, base, run)
    except OutOfMemory:
        pass
    say("There is no memory left for sample pictures; the concept is kept without. Draw some with sdpersonal generate.")
    return concept, None


def _generate_sheet(concept: Concept, base: StableDiffusion, run: Path) -> tuple[Concept, Path]:
    prompts = [one.format(concept.token) for one in SAMPLE_PROMPTS[concept.card.kind]]
    generator = Generator(base, _OneConceptLibrary(concept))
    rows = [
        [picture.image for picture in generator.draw(GenerateRequest(prompt=prompt, n=_SEEDS))] for prompt in prompts
    ]
    page = run / SHEET_FILE
    storage.write_bytes(page, encode_png(labelled_grid(rows, prompts, [f"seed {i}" for i in range(_SEEDS)])))
    return replace(concept, thumbnail=make_thumbnail(rows[0][0])), page


class _OneConceptLibrary:
    """A library of one concept that is not yet in any."""

    def __init__(self, concept: Concept):
        self._concept = concept

    def get(self, token: Token) -> Concept:
        return self._concept
