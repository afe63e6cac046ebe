"""Validate the concept during a run and choose the best checkpoint: `trials.jsonl`, and for each a sheet of images, a
folder of single ones, and the concept as it was.

The best is the last of those within a twentieth of the highest score. The scorer's own noise is nearly as large; and as
long as prompts are followed, more steps make better images than a small scorer can tell: an independent classifier
preferred a later checkpoint for each of four subjects (docs/learning.md), and so do people. Where scores are out of
domain (`ConceptScores`), the best is the last one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from .own_prompts import OWN_SEED
from .run_dir import (
    CLASS_NOUN_FOLDER,
    CLASS_NOUN_IMAGE,
    MAX_SAMPLE_IMAGES,
    MAX_STEP,
    VALIDATIONS_FILE,
    VALIDATIONS_FOLDER,
    SampleImage,
    is_number,
    read_json_lines,
    validation_folder,
    validation_folders,
    validation_image,
    write_sample_images,
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

    photos: squares, all of the run's resolution; autocast_dtype: see `Method`; own_prompts: returns the user's sample
    prompts, which are not scored; save_snapshot: saves the concept as it is after a validation in a folder. The
    constructor generates the class noun's images with the untrained base model; `seconds` is the time that took, and
    that a validation will take.
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
        own_prompts: Callable[[], Sequence[str]] = tuple,
        save_snapshot: Callable[[Method, Validation, Path], None] = lambda method, validation, folder: None,
    ):
        self._own_prompts, self._save_snapshot = own_prompts, save_snapshot
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
        phrase = class_phrase(kind, noun)
        with _replaced_folder(run / VALIDATIONS_FOLDER / CLASS_NOUN_FOLDER) as folder:
            prompts = [(prompt.format(phrase), seed) for prompt, seed in prompts_and_seeds(kind)]
            _save_images(folder, prompts, class_images)
        self._save_sheet(run / VALIDATIONS_FOLDER / CLASS_NOUN_IMAGE, class_images, phrase)

    def resume_from(self, step: int) -> None:
        """Load the validations up to this step; drop later ones, which the resumed run repeats."""
        for later_step, folder in validation_folders(self._run).items():
            if later_step > step:
                storage.remove(folder)
        if not self.evaluation:
            return
        self.validations = [validation for validation in read_validations(self._run) if validation.step <= step]
        lines = [_to_json(step, scores) + "\n" for step, scores in scored(self.validations)]
        storage.write_text(self._run / VALIDATIONS_FILE, "".join(lines))

    def run(self, method: Method, step: int, on_request: bool = False) -> None:
        """Validate after this step, unless that was done before. on_request: a user requested the images."""
        if any(validation.step == step for validation in self.validations):
            return
        own_prompts, images = [(prompt, OWN_SEED) for prompt in self._own_prompts()], []
        if self.evaluation or on_request:
            images = self.generate(method.caption_pieces)
        elif not own_prompts:
            return
        # Apart: in another batch the images that are scored could differ in a pixel.
        own_images = self._generate(method.caption_pieces, own_prompts) if own_prompts else []
        validation = Validation(step, self.evaluation.score(images) if self.evaluation else None)
        with _replaced_folder(validation_folder(self._run, step)) as folder:
            prompts = prompts_and_seeds(self._kind)[: len(images)]
            _save_images(folder, [*prompts, *own_prompts], [*images, *own_images], len(prompts))
            self._save_snapshot(method, validation, folder)
        if images:
            self._save_sheet(validation_image(self._run, step), images, "…")
        if validation.scores:
            storage.append_line(self._run / VALIDATIONS_FILE, _to_json(step, validation.scores))
            self.validations.append(validation)

    @property
    def best(self) -> Validation | None:
        return best_validation(self.validations)

    @property
    def best_step(self) -> int | None:
        return self.best.step if self.best else None

    def generate(self, caption_pieces: CaptionSplitter) -> list[Image.Image]:
        return self._generate(caption_pieces, prompts_and_seeds(self._kind))

    def _generate(self, caption_pieces: CaptionSplitter, prompts: Sequence[tuple[str, int]]) -> list[Image.Image]:
        return generate_samples(self._base, caption_pieces, prompts, self._side, DENOISING_STEPS, self._autocast_dtype)

    def _save_sheet(self, path: Path, images: list[Image.Image], word: str) -> None:
        storage.make_folder(path.parent)
        storage.write_bytes(path, encode_png(validation_sheet(images, self._kind, word)))


def scored(validations: Sequence[Validation]) -> list[tuple[int, ConceptScores]]:
    """Return (step, scores) of the validations that have scores."""
    return [(validation.step, validation.scores) for validation in validations if validation.scores]


def best_validation(validations: Sequence[Validation]) -> Validation | None:
    """Return the last of those that are as good as the one of the highest score, within SCORE_TOLERANCE; None if there
    are none. Later ones are more like the photos, as long as they follow prompts as well: their fidelity counts too.
    Scores that are out of domain are all equally high."""
    if out_of_domain(validations):
        return next(validation for validation in reversed(validations) if validation.scores)
    top = max((scores for _, scores in scored(validations)), key=lambda scores: scores.score, default=None)
    if top is None:
        return None
    return next(
        validation
        for validation in reversed(validations)
        if validation.scores
        and validation.scores.score >= top.score - SCORE_TOLERANCE
        and validation.scores.fidelity >= top.fidelity - SCORE_TOLERANCE
    )


def out_of_domain(validations: Sequence[Validation]) -> bool:
    """Return whether the scores mean nothing: see `ConceptScores`."""
    return any(scores.out_of_domain for _, scores in scored(validations))


def is_improving(validations: Sequence[Validation]) -> bool:
    """Return whether the scores still improve, whatever the loss says: none was good yet, or one of the newest two is
    clearly better than all before. Two, since the noise of a score is as large as the gain of a milestone. Scores that
    are out of domain end no run."""
    if out_of_domain(validations):
        return True
    values = [scores.score for _, scores in scored(validations)]
    if not values:
        return False
    return max(values) < _GOOD_SCORE or max(values[-_PATIENCE:]) > max(values[:-_PATIENCE] or values[:1]) + MIN_DELTA


def validation_sheet(images: list[Image.Image], kind: ConceptKind, word: str) -> Image.Image:
    """Build a sheet with a row of images for each prompt. word: the subject in the prompts."""
    rows = [images[first : first + len(SCORE_SEEDS)] for first in range(0, len(images), len(SCORE_SEEDS))]
    return labelled_grid(rows, [prompt.format(word) for prompt in PROMPTS[kind]], tile_size=128)


@contextmanager
def _replaced_folder(path: Path) -> Iterator[Path]:
    """Create a folder as `storage.new_folder` does, in place of one that a run before a resume left there."""
    if path.exists():
        storage.remove(path)
    with storage.new_folder(path) as folder:
        yield folder


def _save_images(
    folder: Path, prompts: Sequence[tuple[str, int]], images: Sequence[Image.Image], first_own: int = MAX_SAMPLE_IMAGES
) -> None:
    """Write the images of a validation as `1.png`, `2.png`, ... first_own: index of the first of a user's prompt."""
    listed = []
    for index, ((prompt, seed), image) in enumerate(zip(prompts, images, strict=True)):
        path = folder / f"{index + 1}.png"
        storage.write_bytes(path, encode_png(image))
        listed.append(SampleImage(path, prompt, seed, index >= first_own))
    write_sample_images(folder, listed)


def _to_json(step: int, scores: ConceptScores) -> str:
    values = asdict(scores) | {"out_of_domain": int(scores.out_of_domain)}
    return json.dumps({"step": step, "score": round(scores.score, 6)} | values)


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
