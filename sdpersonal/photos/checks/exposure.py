"""Detect photos that are too dark, burnt out or without contrast, by the histogram, and only in clear cases."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

_SIDE = 128
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
# Levels of 255. Good photos of cats in the shade have 105 and 127 here.
_DARK_95, _DARK_99 = 90, 115
_WASHED_OUT = 80  # range of the channel with the largest range; the least of a good photo is 112
# A studio's white wall is white too, but the subject before it is not: in a burnt-out photo much of the rest is at the
# limit in one channel or two.
_WHITE, _WHITE_SHARE = 250, 0.05
_CLIPPED, _CLIPPED_SHARE = 252, 0.2


def exposure(square: np.ndarray) -> Literal["dark", "burnt-out", "washed-out"] | None:
    """Return what is wrong with a photo's exposure, if anything. square: uint8 (S, S, 3)."""
    pixels = np.asarray(Image.fromarray(square).resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
    light_95, light_99 = np.percentile(pixels @ _LUMA, [95, 99])
    if light_95 < _DARK_95 and light_99 < _DARK_99:
        return "dark"
    white = (pixels >= _WHITE).all(-1)
    at_limit = (pixels >= _CLIPPED).any(-1) & ~white
    if white.mean() > _WHITE_SHARE and at_limit.sum() > _CLIPPED_SHARE * (~white).sum():
        return "burnt-out"
    low, high = np.percentile(pixels.reshape(-1, 3), [1, 99], axis=0)
    return "washed-out" if (high - low).max() < _WASHED_OUT else None
