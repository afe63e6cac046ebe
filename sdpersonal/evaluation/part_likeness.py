"""Compare images with photos part by part: how near a subject is, and how near a style.

A part is a patch of a vision transformer's hidden state. Halfway up, such features match the same part of a thing
across images (Amir et al. 2021, arXiv 2112.05814), which the one vector of the last layer does not: a bear without a
head, or a smear in its colours, is as near to a bear by that vector as a good image.

Subject: which parts are the subject is seen from the photos alone. A part counts as far as the other photos have it
too, beyond what the borders of its own photo have: what stands around differs, or reaches the border. An image is as
like as the photos' parts have matches in it. The scale ends at what the photos score among each other, cut out and
pasted on other backgrounds, so that photos from one table ask for no table; it begins at the class noun's images or at
the smeared photos, whichever score higher, so that colours without shapes are worth nothing.

Style: the mean and the standard deviation of all parts (Huang and Belongie 2017, arXiv 1703.06868) of an image, two
thirds up, beside those of the photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from .part_matching import border_similarity, standardize
from .scorers import SUBJECT_DEPTH, Scorer

STYLE_DEPTH = 2 / 3  # of the vision transformer, for parts of styles; on the bench of trials the best of all layers
MAX_PHOTOS = 16  # more of them take time and change little
_SMEAR = 6 / 128  # sigma of the blur that leaves colours only, as a share of the side
_BACKGROUND_BLUR = 8 / 128  # of the class noun's images, which are the backgrounds that cut-outs are pasted on
_CUT_FROM, _CUT_TO = 0.4, 0.7  # distance from the border where cutting begins and ends; 1 is the 95th percentile
_WORST = 0.3  # share of the subject's weight in its parts that match worst: the details
_MIN_RANGE = 0.02  # between floor and ceiling; a smaller range is noise
_COLOUR_GRID = 16  # squares a side whose mean colours are compared

Images = Sequence[Image.Image]


@dataclass(frozen=True)
class PartScores:
    """Likeness, and what it consists of. 0: as the class noun's images or a smear; 1: as the photos among each other.

    shape: of a subject, without colours; None for a style. colour: of matching parts; for a style of the whole image.
    detail: of the parts that match worst; for a style its texture, without colours.
    """

    likeness: float
    shape: float | None
    colour: float
    detail: float


class SubjectLikeness:
    """Compares images with photos of a subject.

    Args:
        photos: square images. class_images: what the base generates for the class noun.
    """

    def __init__(self, scorer: Scorer, photos: Images, class_images: Images):
        self._scorer, self._photos, self._class_images = scorer, _choose_photos(photos), class_images
        features = scorer.part_features(self._photos, SUBJECT_DEPTH)
        pasted = _cut_out(features, self._photos, class_images)
        self._parts = _PhotoParts(scorer, self._photos, class_images, features, pasted)

    @cached_property
    def _grey(self) -> _PhotoParts:
        photos, class_images, pasted = map(_grey, (self._photos, self._class_images, self._parts.pasted))
        return _PhotoParts(self._scorer, photos, class_images, None, pasted, self._parts.weights)

    def likeness(self, images: Images) -> float:
        """Return the likeness alone, in half the time."""
        return self._parts.scale.at(self._parts.mean(self._parts.match(images)))

    def score(self, images: Images) -> PartScores:
        matches, grey = self._parts.match(images), self._grey.match(_grey(images))
        return PartScores(
            likeness=self._parts.scale.at(self._parts.mean(matches)),
            shape=self._grey.scale.at(self._grey.mean(grey)),
            colour=self._parts.colour_scale.at(self._parts.colour_nearness(images, matches)),
            detail=self._parts.detail_scale.at(self._parts.worst(matches)),
        )


class StyleLikeness:
    """Compares images with photos in a style. The arguments are those of `SubjectLikeness`."""

    def __init__(self, scorer: Scorer, photos: Images, class_images: Images):
        photos = _choose_photos(photos)
        self._style = _Statistics(scorer, photos, class_images)
        self._texture = _Statistics(scorer, _grey(photos), _grey(class_images))
        self._colours = _Statistics(None, photos, class_images)

    def likeness(self, images: Images) -> float:
        """Return the likeness alone."""
        return self._style.score(images)

    def score(self, images: Images) -> PartScores:
        return PartScores(
            likeness=self.likeness(images),
            shape=None,
            colour=self._colours.score(images),
            detail=self._texture.score(_grey(images)),
        )


@dataclass(frozen=True)
class _Scale:
    """Maps a similarity to 0 at the floor and 1 at the ceiling."""

    floor: float
    ceiling: float

    def at(self, value: float) -> float:
        return (value - self.floor) / max(self.ceiling - self.floor, _MIN_RANGE)


@dataclass(frozen=True)
class _Matches:
    """For each part of each photo its best match in each image, (photos, images, parts): cosine, and which part."""

    cosine: Tensor
    index: Tensor


class _PhotoParts:
    """The photos' parts, their weights, and the scales of what is measured with them.

    Args:
        features: of the photos, (N, parts, d), if they are known.
        pasted: the photos' subjects on other backgrounds. weights: of the parts, if they are known.
    """

    def __init__(
        self,
        scorer: Scorer,
        photos: Images,
        class_images: Images,
        features: np.ndarray | None,
        pasted: Images,
        weights: Tensor | None = None,
    ):
        self._scorer, self.pasted = scorer, pasted
        raw = torch.from_numpy(scorer.part_features(photos, SUBJECT_DEPTH) if features is None else features)
        class_features = torch.from_numpy(scorer.part_features(class_images, SUBJECT_DEPTH))
        self._sample = torch.cat([raw, class_features])
        self._features = self._standardize(raw)
        self.weights = _subject_weights(self._features) if weights is None else weights
        self._colours = _mean_colours(photos, raw.shape[1])
        smeared = [_blur(image, _SMEAR) for image in pasted]
        matches = self.match(class_images), self.match(smeared), self.match(pasted)
        others = ~torch.eye(len(photos), dtype=torch.bool)
        noun, smear, own = ((self._per_pair(m), self._per_pair(m, _WORST)) for m in matches)
        floors = (max(noun[i].mean().item(), smear[i][others].mean().item()) for i in (0, 1))
        scales = [_Scale(floor, own[i][others].mean().item()) for i, floor in enumerate(floors)]
        self.scale, self.detail_scale = scales
        self.colour_scale = _Scale(
            self.colour_nearness(class_images, matches[0]), self.colour_nearness(pasted, matches[2], others)
        )

    def match(self, images: Images) -> _Matches:
        features = self._standardize(torch.from_numpy(self._scorer.part_features(images, SUBJECT_DEPTH)))
        best = [(self._features @ image.T).max(2) for image in features]  # one image at a time: a tenth of the memory
        return _Matches(torch.stack([b.values for b in best], 1), torch.stack([b.indices for b in best], 1))

    def mean(self, matches: _Matches) -> float:
        return self._per_pair(matches).mean().item()

    def worst(self, matches: _Matches) -> float:
        return self._per_pair(matches, _WORST).mean().item()

    def colour_nearness(self, images: Images, matches: _Matches, pairs: Tensor | None = None) -> float:
        """Return minus the mean distance of RGB, 0 to 1, between the subject's parts and their matches."""
        colours = _mean_colours(images, self._features.shape[1])  # (images, parts, 3)
        rows = torch.arange(len(images))[:, None]
        distances = (self._colours[:, None] - colours[rows, matches.index]).norm(dim=3)
        nearness = -(distances * self.weights[:, None]).sum(2) / self.weights.sum(1)[:, None]
        return (nearness if pairs is None else nearness[pairs]).mean().item()

    def _per_pair(self, matches: _Matches, share: float = 1.0) -> Tensor:
        """Return the mean cosine of the subject's parts, of the worst ones up to this share of the weight, for each
        photo and image."""
        cosine, order = matches.cosine.sort(2)
        weights = self.weights[:, None].expand_as(order).gather(2, order)
        limit = share * weights.sum(2, keepdim=True) * (1 + 1e-4)  # a sum of as many numbers is rounded
        weights = weights * (weights.cumsum(2) <= limit) + 1e-12
        return (cosine * weights).sum(2) / weights.sum(2)

    def _standardize(self, features: Tensor) -> Tensor:
        return standardize(features, self._sample)


class _Statistics:
    """Mean and standard deviation of the images' parts; without a scorer of their colours."""

    def __init__(self, scorer: Scorer | None, photos: Images, class_images: Images):
        self._scorer = scorer
        raw, class_raw = self._parts(photos), self._parts(class_images)
        self._centre = torch.cat([raw.flatten(0, 1), class_raw.flatten(0, 1)]).mean(0)
        self._photos = self._statistics(raw)
        cosine = self._photos @ self._photos.T
        others = ~torch.eye(len(photos), dtype=torch.bool)
        self._scale = _Scale((self._statistics(class_raw) @ self._photos.T).mean().item(), cosine[others].mean().item())

    def score(self, images: Images) -> float:
        return self._scale.at((self._statistics(self._parts(images)) @ self._photos.T).mean().item())

    def _parts(self, images: Images) -> Tensor:
        if self._scorer is None:
            return _mean_colours(images, _COLOUR_GRID**2)
        return torch.from_numpy(self._scorer.part_features(images, STYLE_DEPTH))

    def _statistics(self, parts: Tensor) -> Tensor:
        centred = parts - self._centre
        return F.normalize(torch.cat([centred.mean(1), centred.std(1)], 1), dim=1)


def _choose_photos(photos: Images) -> Images:
    """Return at most MAX_PHOTOS, evenly chosen. One photo also counts mirrored: nothing could be compared else."""
    if len(photos) == 1:
        return [photos[0], photos[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    count = min(len(photos), MAX_PHOTOS)
    return [photos[i * len(photos) // count] for i in range(count)]


def _subject_weights(features: Tensor) -> Tensor:
    """Return how much each part is of the subject, (N, parts), from standardized features (N, parts, d)."""
    count = len(features)
    in_others = torch.stack(
        [
            torch.stack([(features[a] @ features[b].T).amax(1) for b in range(count) if b != a]).mean(0)
            for a in range(count)
        ]
    )
    weights = (in_others - border_similarity(features)).clamp(min=0) ** 2
    return torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.ones_like(weights))


def _cut_out(features: np.ndarray, photos: Images, class_images: Images) -> list[Image.Image]:
    """Return the photos' subjects, cut out by their parts' difference from the border, on blurred class images."""
    raw = torch.from_numpy(features)
    difference = 1 - border_similarity(standardize(raw, raw))
    relative = difference / difference.quantile(0.95, dim=1, keepdim=True).clamp(min=1e-6)
    covers = ((relative - _CUT_FROM) / (_CUT_TO - _CUT_FROM)).clamp(0, 1)
    side = round(covers.shape[1] ** 0.5)
    pasted = []
    for number, (photo, cover) in enumerate(zip(photos, covers, strict=True)):
        background = _blur(class_images[2 * number % len(class_images)].convert("RGB"), _BACKGROUND_BLUR)
        mask = Image.fromarray((cover.view(side, side) * 255).byte().numpy())
        mask = mask.resize(photo.size, Image.Resampling.BILINEAR)
        pasted.append(Image.composite(photo.convert("RGB"), background.resize(photo.size), mask))
    return pasted


def _mean_colours(images: Images, parts: int) -> Tensor:
    """Return the mean RGB of each part, 0 to 1, (N, parts, 3)."""
    side = (round(parts**0.5),) * 2
    pixels = [np.asarray(image.convert("RGB").resize(side, Image.Resampling.BOX), np.float32) / 255 for image in images]
    return torch.from_numpy(np.stack(pixels)).flatten(1, 2)


def _grey(images: Images) -> list[Image.Image]:
    return [image.convert("L").convert("RGB") for image in images]


def _blur(image: Image.Image, sigma: float) -> Image.Image:
    """Blur an image. sigma: as a share of its side."""
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(sigma * image.width))
