"""Check single photos: their exposure and their sharpness."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

_EXPOSURE_SIDE = 128
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
# Levels of 255. Good photos of cats in the shade have 105 and 127 here.
_DARK_95, _DARK_99 = 90, 115
_WASHED_OUT = 80  # range of the channel with the largest range; the least of a good photo is 112
# A studio's white wall is white too, but the subject before it is not: in a burnt-out photo much of the rest is at the
# limit in one channel or two.
_WHITE, _WHITE_SHARE = 250, 0.05
_CLIPPED, _CLIPPED_SHARE = 252, 0.2

SIDE = 256  # pixels at which sharpness is measured; smaller squares are not enlarged
BLUR_THRESHOLD = 0.36  # the lowest of 78 real photos is 0.44, of the sample photos 0.39
_WINDOW = 9  # pixels within which a step is measured
_STEP = 40  # least step, of 255 levels: below it, noise looks like sharp edges
_TILES = 8  # along each side
_SHARPEST = 4  # tiles that count
_MIN_TILES = 5  # tiles with edges; fewer are not enough to judge by


def exposure(square: np.ndarray) -> Literal["dark", "burnt-out", "washed-out"] | None:
    """Return what is clearly wrong with a photo's exposure, by its histogram. square: uint8 (S, S, 3)."""
    pixels = np.asarray(
        Image.fromarray(square).resize((_EXPOSURE_SIDE, _EXPOSURE_SIDE), Image.Resampling.BOX), np.float32
    )
    light_95, light_99 = np.percentile(pixels @ _LUMA, [95, 99])
    if light_95 < _DARK_95 and light_99 < _DARK_99:
        return "dark"
    white = (pixels >= _WHITE).all(-1)
    at_limit = (pixels >= _CLIPPED).any(-1) & ~white
    if white.mean() > _WHITE_SHARE and at_limit.sum() > _CLIPPED_SHARE * (~white).sum():
        return "burnt-out"
    low, high = np.percentile(pixels.reshape(-1, 3), [1, 99], axis=0)
    return "washed-out" if (high - low).max() < _WASHED_OUT else None


def sharpness(square: np.ndarray) -> float | None:
    """Return the sharpness where the photo is sharpest, 0 to 1; None if it has no edges. square: uint8 (S, S, 3).

    An edge's sharpness is the share of its step that lies within one pixel: about 0.6 on a sharp photo, 0.35 after a
    Gaussian blur of 1.5 pixels. It does not depend on contrast, nor on how much of the image is plain. Only the
    sharpest parts count, so a soft background is no fault. Rows and columns are measured separately, because a photo
    with motion blur is sharp in one direction.
    """
    image = Image.fromarray(square).convert("L")
    side = min(SIDE, image.width)
    gray = np.asarray(image.resize((side, side), Image.Resampling.LANCZOS), np.float32)
    measured = [value for value in (_along_rows(gray), _along_rows(gray.T)) if value is not None]
    if measured:
        return min(measured)
    # Too blurred for a step to fit the window: at a quarter of the size a blurred image has edges, a plain one has not.
    coarse = np.asarray(image.resize((side // 4, side // 4), Image.Resampling.BOX), np.float32)
    coarse_share = _along_rows(coarse) or _along_rows(coarse.T)
    return coarse_share / 4 if coarse_share else None


def _along_rows(gray: np.ndarray) -> float | None:
    windows = sliding_window_view(gray, _WINDOW, axis=1)
    step = windows.max(-1) - windows.min(-1)
    middle = _WINDOW // 2
    change = np.abs(np.diff(gray, axis=1))[:, middle : middle + step.shape[1]]
    share = np.divide(change, step, out=np.zeros_like(step), where=step > _STEP)
    tiles = [tile for band in np.array_split(share, _TILES, axis=0) for tile in np.array_split(band, _TILES, axis=1)]
    sharpest = sorted(filter(None, map(_tile_sharpness, tiles)), reverse=True)
    return float(np.mean(sharpest[:_SHARPEST])) if len(sharpest) >= _MIN_TILES else None


def _tile_sharpness(tile: np.ndarray) -> float | None:
    edges = tile[tile > 0]
    return float(np.quantile(edges, 0.9)) if len(edges) >= max(8, tile.size // 100) else None
