"""The acceptance test of a concept: fixed prompts, drawn with the token and once with the class noun, judged.

Four figures, as the DreamBooth paper asks for them (Ruiz et al. 2022, section 4.1 and 4.3), and one that joins them:

- likeness: how alike the pictures and the photos are. 0: as the class noun's; 1: as the photos among themselves.
- fidelity: how surely each picture is told by its prompt from the other prompts. 1: as surely as the class noun's.
- copying: the share of pictures that are one of the photos over again, pixel by pixel, whatever their prompt asked for.
- diversity: how unlike pictures of one prompt are: 1 less their cosine.

The score is the root of likeness x fidelity (DreamBench++, Peng et al. 2024, ranks by that product), less what was
copied: neither a stranger in the right place nor the photo itself in every place is what was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from ..config import ConceptKind
from .scorers import Scorer

PROMPTS: dict[ConceptKind, tuple[str, ...]] = {
    "object": ("{} on the beach", "{} in the snow", "{} on a blue background", "{} in the forest"),
    "person": ("{} on the beach", "{} in the snow", "{} on a blue background", "{} in the forest"),
    "style": tuple(f"a {thing} in the style of {{}}" for thing in ("cat", "house", "tree", "car")),
}
SEEDS = (0, 1)  # of each prompt's pictures
COPY_CORRELATION = 0.9  # correlation at `_SMALL` pixels from which on a picture is the photo again
_THUMBNAIL_SIDE = 32
_MIN_RANGE = 0.05  # between floor and ceiling; a smaller one is the judge's own noise
_MIN_SPREAD = 0.02  # spread of pixel values (of 1) under which a picture has nothing that could be compared


@dataclass(frozen=True)
class ConceptScores:
    """See the module. likeness may lie outside 0 to 1; cosine is the plain mean to the photos, -1 to 1."""

    likeness: float
    fidelity: float
    copying: float
    diversity: float
    cosine: float

    @property
    def score(self) -> float:
        """0 to 1."""
        both = min(1.0, max(0.0, self.likeness)) * min(1.0, max(0.0, self.fidelity))
        return math.sqrt(both) * (1 - self.copying)

    def figures(self) -> dict[str, float]:
        """All of them, for a card."""
        return {key: round(value, 4) for key, value in (asdict(self) | {"score": self.score}).items()}


class ConceptEvaluation:
    """Scores pictures of a concept against its photos and against the class noun's pictures.

    photos: squares; plain: the class noun's pictures, in the order of `asked`. floor: mean cosine between these and the
    photos; ceiling: of the photos among themselves.
    """

    def __init__(
        self,
        judge: Scorer,
        kind: ConceptKind,
        class_noun: str,
        photos: Sequence[Image.Image],
        plain: Sequence[Image.Image],
    ):
        self._scorer = judge
        self._texts = judge.read([prompt.format(class_phrase(kind, class_noun)) for prompt in PROMPTS[kind]])
        self._photos, self._small = judge.subject(photos), _thumbnails(photos)
        self.floor = float((judge.subject(plain) @ self._photos.T).mean())
        self.ceiling = _mean_pairwise_cosine(self._photos)
        self._class_fidelity = float(self._told(plain).mean())

    def score(self, pictures: Sequence[Image.Image]) -> ConceptScores:
        """pictures: of every prompt with every seed, in the order of `asked`."""
        looks, odds = self._scorer.subject(pictures), self._told(pictures)
        cosine = float((looks @ self._photos.T).mean())
        return ConceptScores(
            likeness=(cosine - self.floor) / max(self.ceiling - self.floor, _MIN_RANGE),
            fidelity=min(1.0, float(odds.mean()) / max(self._class_fidelity, 1 / len(self._texts))),
            # In the place that was asked for, a picture may well be like the photo that was taken there.
            copying=float(
                (((_thumbnails(pictures) @ self._small.T).max(axis=1) > COPY_CORRELATION) & (odds < 0.5)).mean()
            ),
            diversity=_mean_diversity(looks),
            cosine=cosine,
        )

    def _told(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """The probability of each picture's own prompt among all, by CLIP's own softmax: (N,)."""
        logits = self._scorer.scale * (self._scorer.image_features(pictures) @ self._texts.T)  # (N, prompts)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        right = np.repeat(np.arange(len(self._texts)), len(SEEDS))
        return odds[np.arange(len(pictures)), right] / odds.sum(axis=1)


def prompts_and_seeds(kind: ConceptKind) -> list[tuple[str, int]]:
    """(prompt with {} for the word, seed) of every picture, prompt by prompt."""
    return [(prompt, seed) for prompt in PROMPTS[kind] for seed in SEEDS]


def with_article(noun: str) -> str:
    """ "a bear", "an octopus"; as it is where there is one already."""
    if noun.split(" ")[0].lower() in ("a", "an", "the", "some", "my"):
        return noun
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def class_phrase(kind: ConceptKind, class_noun: str) -> str:
    """What stands in a prompt in the token's place: "a bear"; of a style its words alone."""
    return class_noun if kind == "style" else with_article(class_noun)


def _mean_pairwise_cosine(features: np.ndarray) -> float:
    """Mean cosine over all pairs; 1 where there is one only."""
    count = len(features)
    return float(((features @ features.T).sum() - count) / (count * (count - 1))) if count > 1 else 1.0


def _mean_diversity(features: np.ndarray) -> float:
    """Mean of 1 - cosine between pictures of the same prompt."""
    groups = features.reshape(-1, len(SEEDS), features.shape[1])
    return float(np.mean([1 - _mean_pairwise_cosine(group) for group in groups]))


def _thumbnails(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pictures without detail: (N, _SMALL * _SMALL * 3), each colour's mean 0, length 1; zeros for an empty one."""
    size = (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
    rows = [np.asarray(one.convert("RGB").resize(size, Image.Resampling.BOX), np.float32) / 255 for one in pictures]
    flat = np.stack([(row - row.mean((0, 1))).ravel() for row in rows])  # a blue wall is not yet a copy
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > _MIN_SPREAD * math.sqrt(flat.shape[1]), flat / np.maximum(length, 1e-9), 0)
