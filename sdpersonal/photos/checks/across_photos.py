"""Check what the photos of a set share: their orientation and their background.

A background is compared by the colours along the left, right and top edges, where few subjects reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .examined import ExaminedPhoto

MIN_MARGIN = 0.055  # gain in similarity; the most of an upright photo is 0.045
MIN_PHOTOS = 4  # photos in a set; of any three, one can differ from the two others by chance
_EDGE_SIDE, _CELLS, _DIRECTIONS = 128, 4, 8

SHARED_SIMILARITY = 0.68  # median overlap; the highest of a good set with several backgrounds is 0.61
_BORDER_SIDE, _STRIP = 64, 9
_BINS = (8, 16, 16)  # of Y, Cb, Cr

# Change of light between pixels that 60 % of a photo are below, mean of a set: drawn ones have 0.0112 at most, 12 of 14
# real ones 0.019 or more; the two others are on white.
_PHOTOGRAPH, _BELOW = 0.015, 60


def sideways_photos(photos: Sequence[ExaminedPhoto]) -> tuple[int, ...]:
    """Return the photos that match the others better when turned by 90 degrees.

    EXIF orientation is applied already; this is about photos without it. A photo's histogram of oriented gradients, as
    it is and turned, is compared with the other photos of the set. Turned, it must be much more similar: this detects a
    photo among others of its scene; of different scenes, about one in four.
    """
    if len(photos) < MIN_PHOTOS:
        return ()
    turned = np.stack([photo.measure(turned_edge_histograms) for photo in photos])  # (n, 3, d)
    upright = turned[:, 0]
    similarity = np.einsum("itd,jd->itj", turned, upright)
    similarity[np.arange(len(photos)), :, np.arange(len(photos))] = 0
    mean = similarity.sum(-1) / (len(photos) - 1)
    return tuple(np.nonzero(mean[:, 1:].max(1) - mean[:, 0] > MIN_MARGIN)[0].tolist())


def turned_edge_histograms(square: np.ndarray) -> np.ndarray:
    """Return the edge histograms of a photo as it is, and turned to the left by one and by three quarters: (3, 128)."""
    return np.stack([edge_histogram(np.rot90(square, turns)) for turns in (0, 1, 3)])


def edge_histogram(square: np.ndarray) -> np.ndarray:
    """Return the share of edges in each of 4 x 4 cells in each of 8 directions: (128,), norm 1.
    This is the square root of a histogram of oriented gradients (Dalal and Triggs 2005)."""
    gray = Image.fromarray(square).convert("L").resize((_EDGE_SIDE, _EDGE_SIDE), Image.Resampling.BOX)
    along_y, along_x = np.gradient(np.asarray(gray, np.float32))
    direction = (np.arctan2(along_y, along_x) % np.pi / np.pi * _DIRECTIONS).astype(int) % _DIRECTIONS
    row, column = np.mgrid[:_EDGE_SIDE, :_EDGE_SIDE] * _CELLS // _EDGE_SIDE
    counts = np.zeros((_CELLS, _CELLS, _DIRECTIONS))
    np.add.at(counts, (row, column, direction), np.hypot(along_x, along_y))
    return np.sqrt(counts / max(counts.sum(), 1e-9)).ravel()


def border_histogram(square: np.ndarray) -> np.ndarray:
    """Return a histogram of the colours along three edges, sum 1, (2048,). square: uint8 (S, S, 3)."""
    small = Image.fromarray(square).resize((_BORDER_SIDE, _BORDER_SIDE), Image.Resampling.BOX).convert("YCbCr")
    edge = np.zeros((_BORDER_SIDE, _BORDER_SIDE), bool)
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


def are_photographs(changes: Sequence[float]) -> bool:
    """Return whether most photos show the real world: that has texture everywhere, and drawings have even areas.

    changes: of each photo, `change_of_light`.
    """
    return bool(np.mean(changes) > _PHOTOGRAPH)


def change_of_light(square: np.ndarray) -> float:
    """Return the change of light between neighbouring pixels that most pixels of a photo are below, 0 to 1."""
    gray = Image.fromarray(square).convert("L").resize((_EDGE_SIDE, _EDGE_SIDE), Image.Resampling.BOX)
    along_y, along_x = (np.diff(np.asarray(gray, np.float32) / 255, axis=axis) for axis in (0, 1))
    return float(np.percentile(np.hypot(along_x[:-1], along_y[:, :-1]), _BELOW))


def shared_background(photos: Sequence[ExaminedPhoto]) -> tuple[int, ...]:
    """Return the photos that share one background, if most pairs of the set do; else none."""
    colours = [photo.measure(border_histogram) for photo in photos]
    overlap = np.array([[np.minimum(a, b).sum() for b in colours] for a in colours])
    if np.median(overlap[np.triu_indices(len(overlap), 1)]) < SHARED_SIMILARITY:
        return ()
    others = ~np.eye(len(overlap), dtype=bool)
    return tuple(i for i, row in enumerate(overlap) if np.median(row[others[i]]) >= SHARED_SIMILARITY * 0.8)
