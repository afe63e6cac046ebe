"""Validate the concept during a run and choose the best checkpoint: `trials.jsonl`, and a sheet of images for each.

The best is the last of those within a twentieth of the highest score. The scorer's own noise is nearly as large; and as
long as prompts are followed, more steps make better images than a small scorer can tell: an independent classifier
preferred a later checkpoint for each of four subjects (docs/learning.md), and so do people.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import storage
from ..config import ConceptKind
from ..display.image_grid import encode_png, labelled_grid
from ..evaluation import ConceptEvaluation, ConceptScores, Scorer
from ..evaluation.concept_score import PROMPTS, SCORE_SEEDS, class_phrase, prompts_and_seeds
from ..models import StableDiffusion
from .dataset import CaptionSplitter
from .methods.protocol import Method
from .run_dir import (
    CLASS_NOUN_IMAGE,
    MAX_STEP,
    VALIDATIONS_FILE,
    VALIDATIONS_FOLDER,
    is_number,
    read_json_lines,
    validation_image,
)
from .sampling import generate_samples

DENOISING_STEPS = 12  # enough to compare with the last validation, at half the time of an image for people
SCORE_TOLERANCE = 0.05
MIN_DELTA = 0.02
_PATIENCE = 2
_GOOD_SCORE = 0.6  # of 1; a concept below it is hardly trained
_MAX_BYTES = 1 << 22  # of the file of validations
_MAX_SCORE = 1000.0  # likeness may lie outside 0 to 1: it is divided by a range that may be small


@dataclass(frozen=True)
class Validation:
    """The scores of the concept after a step."""

    step: int
    scores: ConceptScores | None  # None without a scorer


class Validator:
    """Runs the validations of a training; without a scorer it only generates images, and only on request.

    photos: squares, all of the run's resolution; autocast_dtype: see `Method`. The constructor generates the class
    noun's images with the untrained base model; `seconds` is the time that took, and that a validation will take.
    """

    def __init__(
        self,
        run: Path,
        base: StableDiffusion,
        scorer: Scorer | None,
        kind: ConceptKind,
        noun: str,
        photos: list[Image.Image],
        autocast_dtype: torch.dtype | None = None,
    ):
        self._run, self._base, self._kind, self._side = run, base, kind, photos[0].width
        self._autocast_dtype = autocast_dtype
        self.scorer_name = scorer.name if scorer else ""
        self.validations: list[Validation] = []
        self.seconds = 0.0
        self.evaluation: ConceptEvaluation | None = None
        if scorer is None:
            return
        started_at = time.monotonic()
        with base.adapters.disabled():
            class_images = self.generate(lambda prompt: [prompt.format(class_phrase(kind, noun))])
            base.replayer.clear()  # what a training step takes is not known yet
        self.seconds = time.monotonic() - started_at
        self.evaluation = ConceptEvaluation(scorer, kind, noun, photos, class_images)
        self._save(run / VALIDATIONS_FOLDER / CLASS_NOUN_IMAGE, class_images, class_phrase(kind, noun))

    def resume_from(self, step: int) -> None:
        """Load the validations up to this step; drop later ones, which the resumed run repeats."""
        self.validations = [validation for validation in read_validations(self._run) if validation.step <= step]
        lines = [_to_json(step, scores) + "\n" for step, scores in scored(self.validations)]
        storage.write_text(self._run / VALIDATIONS_FILE, "".join(lines))

    def run(self, method: Method, step: int, on_request: bool = False) -> None:
        """Validate after this step, unless that was done before. on_request: a user requested the images."""
        if any(validation.step == step for validation in self.validations) or not (self.evaluation or on_request):
            return
        images = self.generate(method.caption_pieces)
        self._save(validation_image(self._run, step), images, "…")
        if self.evaluation:
            scores = self.evaluation.score(images)
            storage.append_line(self._run / VALIDATIONS_FILE, _to_json(step, scores))
            self.validations.append(Validation(step, scores))

    @property
    def best(self) -> Validation | None:
        return best_validation(self.validations)

    @property
    def best_step(self) -> int | None:
        return self.best.step if self.best else None

    def generate(self, caption_pieces: CaptionSplitter) -> list[Image.Image]:
        images = prompts_and_seeds(self._kind)
        return generate_samples(self._base, caption_pieces, images, self._side, DENOISING_STEPS, self._autocast_dtype)

    def _save(self, path: Path, images: list[Image.Image], word: str) -> None:
        storage.make_folder(path.parent)
        storage.write_bytes(path, encode_png(validation_sheet(images, self._kind, word)))


def scored(validations: Sequence[Validation]) -> list[tuple[int, ConceptScores]]:
    """Return (step, scores) of the validations that have scores."""
    return [(validation.step, validation.scores) for validation in validations if validation.scores]


def best_validation(validations: Sequence[Validation]) -> Validation | None:
    """Return the last of those within SCORE_TOLERANCE of the highest score; None if there are none."""
    highest = max((scores.score for _, scores in scored(validations)), default=0.0)
    return next(
        (
            validation
            for validation in reversed(validations)
            if validation.scores and validation.scores.score >= highest - SCORE_TOLERANCE
        ),
        None,
    )


def is_improving(validations: Sequence[Validation]) -> bool:
    """Return whether the scores still improve, whatever the loss says: none was good yet, or one of the newest two is
    clearly better than all before. Two, since the noise of a score is as large as the gain of a milestone."""
    values = [scores.score for _, scores in scored(validations)]
    if not values:
        return False
    return max(values) < _GOOD_SCORE or max(values[-_PATIENCE:]) > max(values[:-_PATIENCE] or values[:1]) + MIN_DELTA


def validation_sheet(images: list[Image.Image], kind: ConceptKind, word: str) -> Image.Image:
    """Build a sheet with a row of images for each prompt. word: the subject in the prompts."""
    rows = [images[first : first + len(SCORE_SEEDS)] for first in range(0, len(images), len(SCORE_SEEDS))]
    return labelled_grid(rows, [prompt.format(word) for prompt in PROMPTS[kind]], tile_size=128)


def _to_json(step: int, scores: ConceptScores) -> str:
    return json.dumps({"step": step, "score": round(scores.score, 6)} | asdict(scores))


def read_validations(run: Path) -> list[Validation]:
    """Read the validations of a run so far; incomplete lines are left out."""
    entries = read_json_lines(run / VALIDATIONS_FILE, _MAX_BYTES)
    return [validation for entry in entries if (validation := _parse_validation(entry))]


def _parse_validation(entry: dict[str, Any]) -> Validation | None:
    """Return the validation of a line; None unless it has a step and the scores, each a number near those of ours."""
    names = [field.name for field in fields(ConceptScores)]
    values = {name: entry[name] for name in names if entry.get(name) is not None}
    step = entry.get("step")
    are_numbers = all(is_number(value, _MAX_SCORE) for value in values.values())
    if type(step) is not int or not 0 <= step <= MAX_STEP or not are_numbers:
        return None
    scores = ConceptScores.from_dict(values)
    return Validation(step, scores) if scores else None
