"""Detect a shared background by the colours along the left, right and top edges, where few subjects reach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SHARED_SIMILARITY = 0.68  # median overlap; the highest of a good set with several backgrounds is 0.61
_SIDE, _STRIP = 64, 9
_BINS = (8, 16, 16)  # of Y, Cb, Cr


def border_histogram(square: np.ndarray) -> np.ndarray:
    """Return a histogram of the colours along three edges, sum 1, (2048,). square: uint8 (S, S, 3)."""
    small = Image.fromarray(square).resize((_SIDE, _SIDE), Image.Resampling.BOX).convert("YCbCr")
    edge = np.zeros((_SIDE, _SIDE), bool)
    edge[:_STRIP] = edge[:, :_STRIP] = edge[:, -_STRIP:] = True
    return colour_histogram(np.asarray(small)[edge], np.ones(edge.sum()), _BINS)


def colour_histogram(colours: np.ndarray, weights: np.ndarray, bins: tuple[int, int, int]) -> np.ndarray:
    """Return weighted counts of colours (n, 3), 0 to 255, smoothed over neighbouring bins so that similar shades
    count as nearly equal; sum 1."""
    places = [np.clip(colours[:, i].astype(np.float32) * bins[i] // 256, 0, bins[i] - 1).astype(int) for i in range(3)]
    counts = np.zeros(bins)
    np.add.at(counts, tuple(places), weights)
    for axis in range(3):
        padded = np.pad(counts, [(1, 1) if i == axis else (0, 0) for i in range(3)], mode="edge")
        low, mid, high = (padded.take(np.arange(bins[axis]) + shift, axis) for shift in range(3))
        counts = 0.23 * low + 0.54 * mid + 0.23 * high  # a Gaussian of 0.8 bins
    return counts.ravel() / max(counts.sum(), 1e-9)


def shared_background(squares: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Return the photos that share one background, if most pairs of the set do; else none."""
    colours = np.stack([border_histogram(square) for square in squares])
    overlap = np.array([[np.minimum(a, b).sum() for b in colours] for a in colours])
    if np.median(overlap[np.triu_indices(len(overlap), 1)]) < SHARED_SIMILARITY:
        return ()
    others = ~np.eye(len(overlap), dtype=bool)
    return tuple(i for i, row in enumerate(overlap) if np.median(row[others[i]]) >= SHARED_SIMILARITY * 0.8)
