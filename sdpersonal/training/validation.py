"""Acceptance tests held during a run, and which checkpoint is the best: `trials.jsonl`, and a picture of each.

The best is the last of those within a twentieth of the highest score. The judge's own noise is nearly as large; and as
long as prompts are followed, more steps make better pictures than a small judge can tell: a classifier that had no part
in the choice preferred a later checkpoint for each of four subjects (docs/learning.md), and so do eyes.
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
from ..evaluation.concept_score import PROMPTS, SEEDS, class_phrase, prompts_and_seeds
from ..image_grid import encode_png, labelled_grid
from ..models import StableDiffusion
from .methods.protocol import Method
from .sampling import CaptionToPieces, generate_samples

VALIDATIONS_FILE = "trials.jsonl"
VALIDATIONS_FOLDER = "trials"
CLASS_NOUN_FILE = "class-noun.png"
DENOISING_STEPS = 12  # of denoising: enough to compare with the last time, at half the time of a picture for people
SCORE_TOLERANCE = 0.05
MIN_DELTA = 0.02
_PATIENCE = 2
_GOOD_SCORE = 0.6  # of 1; less is a concept that is hardly learned
_LIMIT = 1 << 22


@dataclass(frozen=True)
class Validation:
    """The concept as it was after a step."""

    step: int
    scores: ConceptScores | None  # None where nobody could judge


class Validator:
    """Holds the trials of a run; without a judge it only draws, and only what is asked for.

    photos: squares of `side` pixels. The class noun's pictures are drawn here, by the base as it is now; `seconds` says
    how long that took, as a trial will.
    """

    def __init__(
        self,
        run: Path,
        base: StableDiffusion,
        judge: Scorer | None,
        kind: ConceptKind,
        noun: str,
        photos: list[Image.Image],
    ):
        self._run, self._base, self._kind, self._side = run, base, kind, photos[0].width
        self.judge = judge.name if judge else ""
        self.held: list[Validation] = []
        self.seconds = 0.0
        self.evaluation: ConceptEvaluation | None = None
        if judge is None:
            return
        began = time.monotonic()
        with base.adapters.disabled():
            plain = self.draw(lambda prompt: [prompt.format(class_phrase(kind, noun))])
        self.seconds = time.monotonic() - began
        self.evaluation = ConceptEvaluation(judge, kind, noun, photos, plain)
        self._save(CLASS_NOUN_FILE, plain, class_phrase(kind, noun))

    def resume_from(self, step: int) -> None:
        """Take up the trials of a run up to this step; forget later ones, which it will hold anew."""
        self.held = [trial for trial in read_validations(self._run) if trial.step <= step]
        storage.write_text(self._run / VALIDATIONS_FILE, "".join(_to_json(trial) + "\n" for trial in self.held))

    def run(self, method: Method, step: int, asked: bool = False) -> None:
        """The trial after this step, unless it was held before. asked: by somebody who wants to see pictures."""
        if any(trial.step == step for trial in self.held) or not (self.evaluation or asked):
            return
        pictures = self.draw(method.words)
        self._save(image_name(step), pictures, "…")
        if self.evaluation:
            trial = Validation(step, self.evaluation.score(pictures))
            storage.append_line(self._run / VALIDATIONS_FILE, _to_json(trial))
            self.held.append(trial)

    @property
    def best(self) -> Validation | None:
        return best_validation(self.held)

    @property
    def best_step(self) -> int | None:
        return self.best.step if self.best else None

    def draw(self, words: CaptionToPieces) -> list[Image.Image]:
        return generate_samples(self._base, words, prompts_and_seeds(self._kind), self._side, DENOISING_STEPS)

    def _save(self, name: str, pictures: list[Image.Image], word: str) -> None:
        storage.make_folder(self._run / VALIDATIONS_FOLDER)
        storage.write_bytes(
            self._run / VALIDATIONS_FOLDER / name, encode_png(validation_sheet(pictures, self._kind, word))
        )


def best_validation(trials: Sequence[Validation]) -> Validation | None:
    """The last of those within `AS_GOOD` of the highest score; None of none."""
    judged = [trial for trial in trials if trial.scores]
    highest = max((trial.scores.score for trial in judged), default=0.0)
    return next((trial for trial in reversed(judged) if trial.scores.score >= highest - SCORE_TOLERANCE), None)


def is_improving(trials: Sequence[Validation]) -> bool:
    """Whether there is more to learn, whatever the loss says: no trial was good yet, or one of the newest two is
    clearly better than all before. Of two, since a trial's noise is as large as what a milestone gains."""
    scores = [trial.scores.score for trial in trials if trial.scores]
    if not scores:
        return False
    return max(scores) < _GOOD_SCORE or max(scores[-_PATIENCE:]) > max(scores[:-_PATIENCE] or scores[:1]) + MIN_DELTA


def image_name(step: int) -> str:
    return f"step-{step:06d}.png"


def validation_sheet(pictures: list[Image.Image], kind: ConceptKind, word: str) -> Image.Image:
    """A sheet: a prompt's pictures side by side. word: what stood in the prompts."""
    rows = [pictures[first : first + len(SEEDS)] for first in range(0, len(pictures), len(SEEDS))]
    return labelled_grid(rows, [prompt.format(word) for prompt in PROMPTS[kind]], tile=128)


def _to_json(trial: Validation) -> str:
    return json.dumps({"step": trial.step, "score": round(trial.scores.score, 6)} | asdict(trial.scores))


def read_validations(run: Path) -> list[Validation]:
    """The trials of a run so far; lines that are not whole are left out."""
    try:
        text = storage.read_bytes(run / VALIDATIONS_FILE, _LIMIT).decode(errors="replace")
    except UserError:
        return []
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            step, _ = entry.pop("step"), entry.pop("score")
            scores = ConceptScores(**{key: float(value) for key, value in entry.items()})
            if not all(math.isfinite(value) for value in asdict(scores).values()):
                raise ValueError("not finite")
            found.append(Validation(int(step), scores))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):  # a kill within a line
            continue
    return found
