"""Detect two subjects in a set.

The photos are split into two groups, each as similar as possible by CLIP features of the middle and by the colours that
differ from the border: the silhouette (Rousseeuw 1987) measures how clear the split is. One subject in two places
splits as well; but then the backgrounds split the same way, and half of that silhouette is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from PIL import Image

from ..smart_crop import distance_from_border
from .background import border_histogram, colour_histogram
from .clip_features import ClipFeatures

# Least silhouette. None of 15 full real sets has more than 0.37, but four or five photos of a set have up to 0.49.
MIN_SILHOUETTE, MIN_SILHOUETTE_OF_FEW = 0.4, 0.52
MIN_PHOTOS, FEW_PHOTOS = 4, 5  # photos in a set; two of each subject
_MIDDLE = 0.7  # of the side
_SIDE = 48
_BINS = (6, 8, 8)
_ROUNDS = 5
_SEEDS = 16  # photos from which splits grow, spaced evenly in a large set


def two_subjects(squares: Sequence[np.ndarray], clip: ClipFeatures) -> tuple[int, ...]:
    """Return the smaller of two groups of photos that seem to show different subjects; none if all show the same.
    squares: uint8 (S, S, 3) each."""
    if len(squares) < MIN_PHOTOS:
        return ()
    seen = clip.image_features([_crop_middle(square) for square in squares])
    colours = np.sqrt(np.stack([_subject_histogram(square) for square in squares]))
    behind = np.sqrt(np.stack([border_histogram(square) for square in squares]))
    apart = 1 - (seen @ seen.T + colours @ colours.T) / 2
    second = _cluster(apart)
    if second is None:
        return ()
    by_background = max(0.0, silhouette(1 - behind @ behind.T, second))
    if silhouette(apart, second) - by_background / 2 < (
        MIN_SILHOUETTE_OF_FEW if len(squares) <= FEW_PHOTOS else MIN_SILHOUETTE
    ):
        return ()
    smaller = second if second.sum() * 2 <= len(second) else ~second
    return tuple(np.nonzero(smaller)[0].tolist())


def silhouette(apart: np.ndarray, second: np.ndarray) -> float:
    """Return how much closer photos are to their own group than to the other, -1 to 1. apart: distances (n, n);
    second: which photos are in the second group, (n,)."""
    scores = []
    for i, label in enumerate(second):
        same_group = second == label
        same_group[i] = False
        near, far = apart[i, same_group].mean(), apart[i, second != label].mean()
        scores.append((far - near) / max(near, far, 1e-6))
    return float(np.mean(scores))


def _cluster(apart: np.ndarray) -> np.ndarray | None:
    """Return the best split grown from a pair of photos, with at least two photos in each group."""
    best, best_split = -1.0, None
    seeds = sorted({round(place) for place in np.linspace(0, len(apart) - 1, min(_SEEDS, len(apart)))})
    for a, b in combinations(seeds, 2):
        second = apart[:, b] < apart[:, a]
        for _ in range(_ROUNDS):
            if min(second.sum(), (~second).sum()) < 2:
                break
            second = apart[:, second].mean(1) < apart[:, ~second].mean(1)
        if min(second.sum(), (~second).sum()) >= 2 and (score := silhouette(apart, second)) > best:
            best, best_split = score, second
    return best_split


def _crop_middle(square: np.ndarray) -> Image.Image:
    start = round(len(square) * (1 - _MIDDLE) / 2)
    return Image.fromarray(square[start : len(square) - start, start : len(square) - start])


def _subject_histogram(square: np.ndarray) -> np.ndarray:
    """Return a histogram of the colours that differ from the border, weighted towards the middle; sum 1."""
    small = Image.fromarray(square).resize((_SIDE, _SIDE), Image.Resampling.BOX).convert("YCbCr")
    y, x = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
    colours = np.array(small, np.float32)
    weights = distance_from_border(colours) * np.exp(-2 * (x**2 + y**2))
    colours = colours.reshape(-1, 3)
    colours[:, 1:] = np.clip((colours[:, 1:] - 128) * 128 / 90 + 128, 0, 255)  # strong colours are rare: finer bins
    return colour_histogram(colours, weights.ravel(), _BINS)
