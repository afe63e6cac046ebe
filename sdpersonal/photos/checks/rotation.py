"""Detect photos that lie on their side. EXIF orientation is applied already; this is about photos without it.

A photo's histogram of oriented gradients, as it is and turned, is compared with the other photos of the set. Turned,
it must be much more similar: this detects a photo among others of its scene; of different scenes, about one in four.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

MIN_MARGIN = 0.055  # gain in similarity; the most of an upright photo is 0.045
MIN_PHOTOS = 4  # photos in a set; of any three, one can differ from the two others by chance
_SIDE, _CELLS, _DIRECTIONS = 128, 4, 8


def sideways_photos(squares: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Return the photos that match the others better when turned by 90 degrees. squares: uint8 (S, S, 3) each."""
    if len(squares) < MIN_PHOTOS:
        return ()
    turned = np.stack(
        [[edge_histogram(np.rot90(square, turns)) for turns in (0, 1, 3)] for square in squares]
    )  # (n, 3, d)
    upright = turned[:, 0]
    similarity = np.einsum("itd,jd->itj", turned, upright)
    similarity[np.arange(len(squares)), :, np.arange(len(squares))] = 0
    mean = similarity.sum(-1) / (len(squares) - 1)
    return tuple(np.nonzero(mean[:, 1:].max(1) - mean[:, 0] > MIN_MARGIN)[0].tolist())


def edge_histogram(square: np.ndarray) -> np.ndarray:
    """Return the share of edges in each of 4 x 4 cells in each of 8 directions: (128,), norm 1.
    This is the square root of a histogram of oriented gradients (Dalal and Triggs 2005)."""
    gray = Image.fromarray(square).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    along_y, along_x = np.gradient(np.asarray(gray, np.float32))
    direction = (np.arctan2(along_y, along_x) % np.pi / np.pi * _DIRECTIONS).astype(int) % _DIRECTIONS
    row, column = np.mgrid[:_SIDE, :_SIDE] * _CELLS // _SIDE
    counts = np.zeros((_CELLS, _CELLS, _DIRECTIONS))
    np.add.at(counts, (row, column, direction), np.hypot(along_x, along_y))
    return np.sqrt(counts / max(counts.sum(), 1e-9)).ravel()
