"""Generate the sample sheet of a new concept, as a user would generate images, and its thumbnail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .. import storage
from ..concepts.concept import Concept
from ..concepts.thumbnail import make_thumbnail
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
    """Return the concept with its first image as thumbnail, and the sheet. Both are left out if memory is too small:
    the trained concept is worth more than its images."""
    try:
        with translate_oom("drawing", "", base.device):
            return _generate_sheet(concept, base, run)
    except OutOfMemory:
        pass
    say("There is no memory left for sample pictures; the concept is kept without. Draw some with sdpersonal generate.")
    return concept, None


def _generate_sheet(concept: Concept, base: StableDiffusion, run: Path) -> tuple[Concept, Path]:
    prompts = [prompt.format(concept.token) for prompt in SAMPLE_PROMPTS[concept.card.kind]]
    generator = Generator(base, _OneConceptLibrary(concept))
    rows = [
        [result.image for result in generator.generate(GenerateRequest(prompt=prompt, n=_SEEDS))] for prompt in prompts
    ]
    sheet = run / SHEET_FILE
    storage.write_bytes(sheet, encode_png(labelled_grid(rows, prompts, [f"seed {i}" for i in range(_SEEDS)])))
    return replace(concept, thumbnail=make_thumbnail(rows[0][0])), sheet


class _OneConceptLibrary:
    """A library of the one concept, which is not in any real one yet."""

    def __init__(self, concept: Concept):
        self._concept = concept

    def get(self, token: Token) -> Concept:
        return self._concept
