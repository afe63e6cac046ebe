"""Validate the concept during a run and choose the best checkpoint: `trials.jsonl`, and a sheet of images for each.

The best is the last of those within a twentieth of the highest score. The scorer's own noise is nearly as large; and as
long as prompts are followed, more steps make better images than a small scorer can tell: an independent classifier
preferred a later checkpoint for each of four subjects (docs/learning.md), and so do people.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from .. import storage
from ..config import ConceptKind
from ..errors import UserError
from ..evaluation import ConceptEvaluation, ConceptScores, Scorer
from ..evaluation.concept_score import PROMPTS, SCORE_SEEDS, class_phrase, prompts_and_seeds
from ..image_grid import encode_png, labelled_grid
from ..models import StableDiffusion
from .methods.protocol import Method
from .sampling import CaptionToPieces, generate_samples

VALIDATIONS_FILE = "trials.jsonl"
VALIDATIONS_FOLDER = "trials"
CLASS_NOUN_FILE = "class-noun.png"
DENOISING_STEPS = 12  # enough to compare with the last validation, at half the time of an image for people
SCORE_TOLERANCE = 0.05
MIN_DELTA = 0.02
_PATIENCE = 2
_GOOD_SCORE = 0.6  # of 1; a concept below it is hardly trained
_LIMIT = 1 << 22


@dataclass(frozen=True)
class Validation:
    """The scores of the concept after a step."""

    step: int
    scores: ConceptScores | None  # None without a scorer


class Validator:
    """Runs the validations of a training; without a scorer it only generates images, and only on request.

    photos: squares, all of the run's resolution. The constructor generates the class noun's images with the untrained
    base model; `seconds` is the time that took, and that a validation will take.
    """

    def __init__(
        self,
        run: Path,
        base: StableDiffusion,
        scorer: Scorer | None,
        kind: ConceptKind,
        noun: str,
        photos: list[Image.Image],
    ):
        self._run, self._base, self._kind, self._side = run, base, kind, photos[0].width
        self.scorer_name = scorer.name if scorer else ""
        self.validations: list[Validation] = []
        self.seconds = 0.0
        self.evaluation: ConceptEvaluation | None = None
        if scorer is None:
            return
        started_at = time.monotonic()
        with base.adapters.disabled():
            class_images = self.generate(lambda prompt: [prompt.format(class_phrase(kind, noun))])
        self.seconds = time.monotonic() - started_at
        self.evaluation = ConceptEvaluation(scorer, kind, noun, photos, class_images)
        self._save(CLASS_NOUN_FILE, class_images, class_phrase(kind, noun))

    def resume_from(self, step: int) -> None:
        """Load the validations up to this step; drop later ones, which the resumed run repeats."""
        self.validations = [validation for validation in read_validations(self._run) if validation.step <= step]
        storage.write_text(
            self._run / VALIDATIONS_FILE, "".join(_to_json(validation) + "\n" for validation in self.validations)
        )

    def run(self, method: Method, step: int, on_request: bool = False) -> None:
        """Validate after this step, unless that was done before. asked: a user requested the images."""
        if any(validation.step == step for validation in self.validations) or not (self.evaluation or on_request):
            return
        images = self.generate(method.caption_pieces)
        self._save(image_name(step), images, "…")
        if self.evaluation:
            validation = Validation(step, self.evaluation.score(images))
            storage.append_line(self._run / VALIDATIONS_FILE, _to_json(validation))
            self.validations.append(validation)

    @property
    def best(self) -> Validation | None:
        return best_validation(self.validations)

    @property
    def best_step(self) -> int | None:
        return self.best.step if self.best else None

    def generate(self, caption_pieces: CaptionToPieces) -> list[Image.Image]:
        return generate_samples(self._base, caption_pieces, prompts_and_seeds(self._kind), self._side, DENOISING_STEPS)

    def _save(self, name: str, images: list[Image.Image], word: str) -> None:
        storage.make_folder(self._run / VALIDATIONS_FOLDER)
        storage.write_bytes(
            self._run / VALIDATIONS_FOLDER / name, encode_png(validation_sheet(images, self._kind, word))
        )


def best_validation(validations: Sequence[Validation]) -> Validation | None:
    """Return the last of those within SCORE_TOLERANCE of the highest score; None if there are none."""
    scored = [validation for validation in validations if validation.scores]
    highest = max((validation.scores.score for validation in scored), default=0.0)
    return next(
        (validation for validation in reversed(scored) if validation.scores.score >= highest - SCORE_TOLERANCE), None
    )


def is_improving(validations: Sequence[Validation]) -> bool:
    """Return whether the scores still improve, whatever the loss says: none was good yet, or one of the newest two is
    clearly better than all before. Two, since the noise of a score is as large as the gain of a milestone."""
    scores = [validation.scores.score for validation in validations if validation.scores]
    if not scores:
        return False
    return max(scores) < _GOOD_SCORE or max(scores[-_PATIENCE:]) > max(scores[:-_PATIENCE] or scores[:1]) + MIN_DELTA


def image_name(step: int) -> str:
    return f"step-{step:06d}.png"


def validation_sheet(images: list[Image.Image], kind: ConceptKind, word: str) -> Image.Image:
    """Build a sheet with a row of images for each prompt. word: the subject in the prompts."""
    rows = [images[first : first + len(SCORE_SEEDS)] for first in range(0, len(images), len(SCORE_SEEDS))]
    return labelled_grid(rows, [prompt.format(word) for prompt in PROMPTS[kind]], tile_size=128)


def _to_json(validation: Validation) -> str:
    return json.dumps({"step": validation.step, "score": round(validation.scores.score, 6)} | asdict(validation.scores))


def read_validations(run: Path) -> list[Validation]:
    """Read the validations of a run so far; incomplete lines are left out."""
    try:
        text = storage.read_bytes(run / VALIDATIONS_FILE, _LIMIT).decode(errors="replace")
    except UserError:
        return []
    validations = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            step, _ = entry.pop("step"), entry.pop("score")
            scores = ConceptScores(**{key: float(value) for key, value in entry.items()})
            if not all(math.isfinite(value) for value in asdict(scores).values()):
                raise ValueError("not finite")
            validations.append(Validation(int(step), scores))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):  # a kill within a line
            continue
    return validations
