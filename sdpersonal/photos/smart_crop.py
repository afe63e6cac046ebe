"""Estimate where the subject of a photo is, from colours and edges, to place the square crop.

A pixel's saliency is how far its colour is from the colours along the border (Mahalanobis distance, so a colourful
background does not count as a subject) plus the edges around it, both scaled to mean 1. The square goes where most of
the saliency is, with a mild preference for the middle, where people put what they photograph.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_SHORT_SIDE = 48  # pixels of the small copy that is analysed: finer detail is texture, not subject
_BORDER = 2  # of those pixels
_COLOUR_NOISE = 30.0  # added variance per channel, about 5 of 255 levels: on a plain wall noise must not stand out
_MIDDLE = 0.1  # share of the best square's sum by which a square at the very end must exceed one in the middle


def find_subject(pixels: np.ndarray) -> tuple[int, int]:
    """Return (left, top) of the square around the subject; it moves along the longer side only.

    pixels: uint8 (H, W, 3); the square's side is min(H, W).
    """
    height, width = pixels.shape[:2]
    start = _best_offset(_saliency(pixels).sum(0 if width >= height else 1), abs(width - height), min(height, width))
    return (start, 0) if width >= height else (0, start)


def _saliency(pixels: np.ndarray) -> np.ndarray:
    """Return the saliency of a small copy, mean about 2: (h, w), min(h, w) == _SHORT_SIDE."""
    height, width = pixels.shape[:2]
    scale = _SHORT_SIDE / min(height, width)
    small = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
    colours = np.asarray(small.convert("YCbCr"), dtype=np.float32)
    along_y, along_x = np.gradient(colours[..., 0])
    return _scale_to_mean_one(distance_from_border(colours)) + _scale_to_mean_one(np.hypot(along_x, along_y))


def distance_from_border(colours: np.ndarray) -> np.ndarray:
    """Return the Mahalanobis distance of each colour from those along the border: (H, W, 3) -> (H, W)."""
    inside = np.zeros(colours.shape[:2], dtype=bool)
    inside[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    border = colours[~inside]  # (n, 3)
    covariance = np.cov(border, rowvar=False) + _COLOUR_NOISE * np.eye(3)
    difference = colours - border.mean(axis=0)
    return np.sqrt(np.einsum("hwi,ij,hwj->hw", difference, np.linalg.inv(covariance), difference))


def _scale_to_mean_one(values: np.ndarray) -> np.ndarray:
    return values / max(values.mean(), 1e-6)


def _best_offset(profile: np.ndarray, available: int, side: int) -> int:
    """Return where a square of `side` pixels best begins, 0 to `available`. profile: saliency, summed."""
    sums = np.concatenate([[0.0], np.cumsum(profile)])
    window_sums = sums[_SHORT_SIDE:] - sums[:-_SHORT_SIDE]  # of the window that begins at each small pixel
    offset = np.linspace(-1, 1, len(window_sums)) if len(window_sums) > 1 else np.zeros(1)
    best = int(np.argmax(window_sums / max(window_sums.max(), 1e-6) - _MIDDLE * offset**2))
    return min(round(best * side / _SHORT_SIDE), available)
