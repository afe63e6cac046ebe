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
from ..config import Kind
from ..errors import PersonalError
from ..evaluation import Acceptance, Judge, Scores
from ..evaluation.concept_score import PROMPTS, SEEDS, asked, noun_in
from ..image_grid import png, sheet
from ..models import StableDiffusion
from .methods.protocol import Method
from .sampling import Words, draw

FILE = "trials.jsonl"
FOLDER = "trials"
PLAIN = "class-noun.png"
STEPS = 12  # of denoising: enough to compare with the last time, at half the time of a picture for people
AS_GOOD = 0.05
RISING = 0.02
_NEWEST = 2
_GOOD = 0.6  # of 1; less is a concept that is hardly learned
_LIMIT = 1 << 22


@dataclass(frozen=True)
class Trial:
    """The concept as it was after a step."""

    step: int
    scores: Scores | None  # None where nobody could judge


class Exam:
    """Holds the trials of a run; without a judge it only draws, and only what is asked for.

    photos: squares of `side` pixels. The class noun's pictures are drawn here, by the base as it is now; `seconds` says
    how long that took, as a trial will.
    """

    def __init__(
        self, run: Path, base: StableDiffusion, judge: Judge | None, kind: Kind, noun: str, photos: list[Image.Image]
    ):
        self._run, self._base, self._kind, self._side = run, base, kind, photos[0].width
        self.judge = judge.name if judge else ""
        self.held: list[Trial] = []
        self.seconds = 0.0
        self.acceptance: Acceptance | None = None
        if judge is None:
            return
        began = time.monotonic()
        with base.slots.bypassed():
            plain = self.draw(lambda prompt: [prompt.format(noun_in(kind, noun))])
        self.seconds = time.monotonic() - began
        self.acceptance = Acceptance(judge, kind, noun, photos, plain)
        self._keep(PLAIN, plain, noun_in(kind, noun))

    def go_on_from(self, step: int) -> None:
        """Take up the trials of a run up to this step; forget later ones, which it will hold anew."""
        self.held = [trial for trial in read_trials(self._run) if trial.step <= step]
        storage.write_text(self._run / FILE, "".join(_line(trial) + "\n" for trial in self.held))

    def hold(self, method: Method, step: int, asked: bool = False) -> None:
        """The trial after this step, unless it was held before. asked: by somebody who wants to see pictures."""
        if any(trial.step == step for trial in self.held) or not (self.acceptance or asked):
            return
        pictures = self.draw(method.words)
        self._keep(picture_name(step), pictures, "…")
        if self.acceptance:
            trial = Trial(step, self.acceptance.score(pictures))
            storage.append_line(self._run / FILE, _line(trial))
            self.held.append(trial)

    @property
    def best(self) -> Trial | None:
        return best_of(self.held)

    @property
    def best_step(self) -> int | None:
        return self.best.step if self.best else None

    def draw(self, words: Words) -> list[Image.Image]:
        return draw(self._base, words, asked(self._kind), self._side, STEPS)

    def _keep(self, name: str, pictures: list[Image.Image], word: str) -> None:
        storage.make_folder(self._run / FOLDER)
        storage.write_bytes(self._run / FOLDER / name, png(in_rows(pictures, self._kind, word)))


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The last of those within `AS_GOOD` of the highest score; None of none."""
    judged = [trial for trial in trials if trial.scores]
    highest = max((trial.scores.score for trial in judged), default=0.0)
    return next((trial for trial in reversed(judged) if trial.scores.score >= highest - AS_GOOD), None)


def wants_more(trials: Sequence[Trial]) -> bool:
    """Whether there is more to learn, whatever the loss says: no trial was good yet, or one of the newest two is
    clearly better than all before. Of two, since a trial's noise is as large as what a milestone gains."""
    scores = [trial.scores.score for trial in trials if trial.scores]
    if not scores:
        return False
    return max(scores) < _GOOD or max(scores[-_NEWEST:]) > max(scores[:-_NEWEST] or scores[:1]) + RISING


def picture_name(step: int) -> str:
    return f"step-{step:06d}.png"


def in_rows(pictures: list[Image.Image], kind: Kind, word: str) -> Image.Image:
    """A sheet: a prompt's pictures side by side. word: what stood in the prompts."""
    rows = [pictures[first : first + len(SEEDS)] for first in range(0, len(pictures), len(SEEDS))]
    return sheet(rows, [prompt.format(word) for prompt in PROMPTS[kind]], tile=128)


def _line(trial: Trial) -> str:
    return json.dumps({"step": trial.step, "score": round(trial.scores.score, 6)} | asdict(trial.scores))


def read_trials(run: Path) -> list[Trial]:
    """The trials of a run so far; lines that are not whole are left out."""
    try:
        text = storage.read_bytes(run / FILE, _LIMIT).decode(errors="replace")
    except PersonalError:
        return []
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            step, _ = entry.pop("step"), entry.pop("score")
            scores = Scores(**{key: float(value) for key, value in entry.items()})
            if not all(math.isfinite(value) for value in asdict(scores).values()):
                raise ValueError("not finite")
            found.append(Trial(int(step), scores))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):  # a kill within a line
            continue
    return found
