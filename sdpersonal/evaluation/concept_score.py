"""Score a concept: images of fixed prompts are generated with the token, and once with the class noun, and compared.

There are four metrics, as in the DreamBooth paper (Ruiz et al. 2022, sections 4.1 and 4.3), and one that joins them:

- likeness: similarity of images and photos, part by part: `part_likeness`. 0: as the class noun's images or as smeared
  photos; 1: as the photos among themselves. Its aspects are shape, colour and detail.
- fidelity: how surely CLIP tells an image's prompt from the other prompts. 1: as surely as for the class noun's images.
- copying: the share of images that repeat one of the photos, pixel by pixel, whatever their prompt asked for.
- diversity: dissimilarity of images of the same prompt: 1 - their cosine.

The score is the root of likeness x fidelity (DreamBench++, Peng et al. 2024, ranks by that product), times the share
that is not copied: neither another subject in the right place nor the photo itself in every place is a success.

A scorer that has seen drawings only calls any images like photographs, since it sees little of either. Of photographs
its scores are out of domain: they are computed, but nothing is concluded from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from ..config import ConceptKind
from ..photos.checks.across_photos import are_photographs, change_of_light
from .part_likeness import StyleLikeness, SubjectLikeness
from .scorers import Scorer

# Thresholds of the explanation. On the bench of trials (tests/data/trials) at least 85 % of what is called like the
# photos looks like them.
LITTLE_LIKENESS, SOME_LIKENESS, LIKE = 0.15, 0.4, 0.8  # likeness: 0 is the class noun's images, 1 the photos
ASPECT_RIGHT = 0.7  # of an aspect's own scale
MANY_COPIES = 0.5  # share of the images
LOW_FIDELITY = 0.6  # fidelity

PROMPTS: dict[ConceptKind, tuple[str, ...]] = {
    "object": ("{} on the beach", "{} in the snow", "{} on a blue background", "{} in the forest"),
    "person": ("{} on the beach", "{} in the snow", "{} on a blue background", "{} in the forest"),
    "style": tuple(f"a {noun} in the style of {{}}" for noun in ("cat", "house", "tree", "car")),
}
SCORE_SEEDS = (0, 1)  # of each prompt's images
COPY_CORRELATION = 0.9  # correlation of thumbnails above which an image is a copy of the photo
_THUMBNAIL_SIDE = 32  # pixels
_MIN_SPREAD = 0.02  # standard deviation of pixel values (0 to 1); below it an image has nothing to compare
_OF_PIXELS = ("copying",)  # what no scorer is needed for


@dataclass(frozen=True)
class ConceptScores:
    """The metrics of this module. likeness and its aspects may lie outside 0 to 1; cosine is the mean to the photos, -1
    to 1. The aspects are None where they do not exist: a style has no shape, and earlier versions had none.
    out_of_domain: the photos are photographs and the scorer knows drawings only, so that only `copying` means anything.
    """

    likeness: float
    fidelity: float
    copying: float
    diversity: float
    cosine: float
    shape: float | None = None
    colour: float | None = None
    detail: float | None = None
    out_of_domain: bool = False

    @property
    def score(self) -> float:
        """The combined score, 0 to 1."""
        product = min(1.0, max(0.0, self.likeness)) * min(1.0, max(0.0, self.fidelity))
        return math.sqrt(product) * (1 - self.copying)

    @property
    def aspects(self) -> dict[str, float]:
        """The aspects of the likeness that exist, by name."""
        values = {"shape": self.shape, "colour": self.colour, "detail": self.detail}
        return {name: value for name, value in values.items() if value is not None}

    def to_dict(self) -> dict[str, float]:
        """Return all metrics that mean anything, rounded, for a concept's card."""
        if self.out_of_domain:
            return {name: round(getattr(self, name), 4) for name in _OF_PIXELS} | {"out_of_domain": 1.0}
        values = asdict(self) | {"score": self.score}
        del values["out_of_domain"]
        return {key: round(value, 4) for key, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConceptScores | None:
        """Return the scores among these values; None if one is missing or no finite number. Of photographs that the
        scorer does not know, what means nothing may be missing."""
        try:
            numbers = {f.name: float(values[f.name]) for f in fields(cls) if values.get(f.name) is not None}
        except (ValueError, TypeError, OverflowError):
            return None
        required = {f.name for f in fields(cls) if f.default is MISSING}
        if out_of_domain := bool(numbers.pop("out_of_domain", 0)):
            numbers = dict.fromkeys(required.difference(_OF_PIXELS), 0.0) | numbers
        if not numbers.keys() >= required or not all(map(math.isfinite, numbers.values())):
            return None
        return cls(**numbers, out_of_domain=out_of_domain)


class ConceptEvaluation:
    """Scores images of a concept against its photos and against the class noun's images.

    Args:
        photos: square images.
        class_images: the class noun's images, in the order of `prompts_and_seeds`.

    out_of_domain: see `ConceptScores`. Of a style that is not known: a painting has as much texture as a photograph.
    """

    def __init__(
        self,
        scorer: Scorer,
        kind: ConceptKind,
        class_noun: str,
        photos: Sequence[Image.Image],
        class_images: Sequence[Image.Image],
    ):
        self._scorer = scorer
        self._texts = scorer.text_features([prompt.format(class_phrase(kind, class_noun)) for prompt in PROMPTS[kind]])
        self._photos, self._photo_thumbnails = scorer.subject_features(photos), _thumbnails(photos)
        self._parts = (StyleLikeness if kind == "style" else SubjectLikeness)(scorer, photos, class_images)
        self._class_fidelity = float(self._prompt_probabilities(class_images).mean())
        self.out_of_domain = (
            kind != "style"
            and not scorer.knows_photographs
            and are_photographs([change_of_light(np.asarray(photo.convert("RGB"))) for photo in photos])
        )

    def score(self, images: Sequence[Image.Image]) -> ConceptScores:
        """Score images of every prompt with every seed, in the order of `prompts_and_seeds`."""
        features, probabilities = self._scorer.subject_features(images), self._prompt_probabilities(images)
        return ConceptScores(
            **asdict(self._parts.score(images)),
            fidelity=min(1.0, float(probabilities.mean()) / max(self._class_fidelity, 1 / len(self._texts))),
            # In the place that its prompt asks for, an image may resemble the photo that was taken there.
            copying=float(
                (
                    ((_thumbnails(images) @ self._photo_thumbnails.T).max(axis=1) > COPY_CORRELATION)
                    & (probabilities < 0.5)
                ).mean()
            ),
            diversity=_mean_diversity(features),
            cosine=float((features @ self._photos.T).mean()),
            out_of_domain=self.out_of_domain,
        )

    def _prompt_probabilities(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return the probability of each image's own prompt among all prompts, by CLIP's softmax: (N,)."""
        logits = self._scorer.logit_scale * (self._scorer.image_features(images) @ self._texts.T)  # (N, prompts)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        own_prompt = np.repeat(np.arange(len(self._texts)), len(SCORE_SEEDS))
        return exponentials[np.arange(len(images)), own_prompt] / exponentials.sum(axis=1)


def prompts_and_seeds(kind: ConceptKind) -> list[tuple[str, int]]:
    """Return (prompt with {} for the subject, seed) of every image, prompt by prompt."""
    return [(prompt, seed) for prompt in PROMPTS[kind] for seed in SCORE_SEEDS]


def with_article(noun: str) -> str:
    """Put an article before a noun ("a bear", "an octopus") unless it has one."""
    if noun.split(" ")[0].lower() in ("a", "an", "the", "some", "my"):
        return noun
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def class_phrase(kind: ConceptKind, class_noun: str) -> str:
    """Return what replaces the token in a prompt: "a bear"; for a style the class noun without an article."""
    return class_noun if kind == "style" else with_article(class_noun)


def _mean_pairwise_cosine(features: np.ndarray) -> float:
    """Return the mean cosine over all pairs; 1 if there is only one."""
    count = len(features)
    return float(((features @ features.T).sum() - count) / (count * (count - 1))) if count > 1 else 1.0


def _mean_diversity(features: np.ndarray) -> float:
    """Return the mean of 1 - cosine between images of the same prompt."""
    groups = features.reshape(-1, len(SCORE_SEEDS), features.shape[1])
    return float(np.mean([1 - _mean_pairwise_cosine(group) for group in groups]))


def _thumbnails(images: Sequence[Image.Image]) -> np.ndarray:
    """Return thumbnails as vectors, (N, _THUMBNAIL_SIDE**2 * 3), with mean 0 per colour and norm 1.

    An image without contrast gives zeros.
    """
    size = (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
    pixels = [np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), np.float32) / 255 for image in images]
    flat = np.stack(
        [(thumbnail - thumbnail.mean((0, 1))).ravel() for thumbnail in pixels]
    )  # the same mean colour, such as a blue wall, is no copy
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(norm > _MIN_SPREAD * math.sqrt(flat.shape[1]), flat / np.maximum(norm, 1e-9), 0)


def explain_scores(scores: ConceptScores, class_noun: str, kind: ConceptKind = "object") -> list[str]:
    """Explain the scores in a few sentences, the most serious first."""
    messages = []
    if scores.copying >= MANY_COPIES:
        messages.append(
            f"It only copies a photo: {scores.copying:.0%} of the images repeat one of the photos. "
            "More photos, in other places, with captions, or fewer --steps."
        )
    elif scores.fidelity < LOW_FIDELITY and not scores.out_of_domain:
        messages.append(_EXPLAIN_FIDELITY["style" if kind == "style" else "subject"])
    if scores.out_of_domain:
        return [*messages, *_OUT_OF_DOMAIN]
    return [*messages, *_explain_likeness(scores, class_noun, kind, praise=not messages)]


_OUT_OF_DOMAIN = (
    "Its likeness to the photos cannot be scored: they are photographs, and the built-in CLIP has seen drawings only. "
    "Judge it by its samples.",
    "The built-in model keeps colours and rough shapes of photographs. For a likeness, train on Stable Diffusion: "
    "--base sd15.",
)


_EXPLAIN_FIDELITY = {
    "subject": "The photos' surroundings came along: the place that a prompt asks for is often missing. "
    "Captions beside the photos help, and a strength below 1 in the prompt, as in <me/it:0.7>.",
    "style": "What a prompt asks for is hard to recognise in this style. Captions that name what a photo shows help, "
    "and a strength below 1 in the prompt, as in <me/it:0.7>.",
}


_PRAISE_FIDELITY = {
    "subject": "the places that prompts ask for are there",
    "style": "what prompts ask for is recognisable",
}


def _explain_likeness(scores: ConceptScores, class_noun: str, kind: ConceptKind, praise: bool) -> list[str]:
    """Return a sentence about the likeness. praise: whether to say so if there is nothing to improve."""
    subject = {"style": "The style", "person": "The person", "object": "It"}[kind]
    values = _aspects(scores, kind)
    right = [name for name, value in values.items() if value >= ASPECT_RIGHT]
    wrong = [name for name in values if name not in right]
    if scores.likeness < LITTLE_LIKENESS:
        if scores.colour is not None and scores.colour >= ASPECT_RIGHT and kind != "style":
            return ["Only the colours are those of the photos; nothing else is recognisable. Give more --steps."]
        return [
            f"Training had no effect: the images are no more like the photos than any {class_noun}. "
            "Give more --steps, or a larger --lr, or --method lora."
        ]
    if scores.likeness >= LIKE:
        if not praise:
            return []
        of = f" in {_join(right)}" if right else ""
        far = [name for name in wrong if values[name] < LITTLE_LIKENESS]
        near = [name for name in wrong if name not in far]
        but = f", but not in {_join(far)}" if far and right else ""
        but += f"; {_join(near)} could be nearer" if near and right else ""
        fidelity = _PRAISE_FIDELITY["style" if kind == "style" else "subject"]
        return [f"{subject} is like the photos{of}{but}, and {fidelity}."]
    how = "somewhat" if scores.likeness >= SOME_LIKENESS else "hardly"
    seen = ": " + "; ".join(
        part for part in (right and f"right in {_join(right)}", wrong and f"not yet in {_join(wrong)}") if part
    )
    more = "More --steps, more vectors or --method lora bring it nearer."
    return [f"{subject} is {how} like the photos{seen if right or wrong else ''}. {more}"]


def _aspects(scores: ConceptScores, kind: ConceptKind) -> dict[str, float]:
    """Return the values of the aspects by the names that the sentences use."""
    names = {"detail": "texture"} if kind == "style" else {}
    return {names.get(name, name): value for name, value in scores.aspects.items()}


def _join(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def format_scores(scores: ConceptScores) -> str:
    """Format the main scores in one line, with their scales."""
    if scores.out_of_domain:
        return f"likeness not scored, copied {scores.copying:.0%}"
    of = ", ".join(f"{name} {value:.2f}" for name, value in scores.aspects.items())
    return (
        f"score {scores.score:.2f}: likeness {scores.likeness:.2f} (0 the class noun's or a smear, 1 the photos' own"
        f"{f'; {of}' if of else ''}), prompts followed {scores.fidelity:.0%}, copied {scores.copying:.0%}"
    )
