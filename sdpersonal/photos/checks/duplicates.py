"""Find near-duplicate photos: saved again, cropped differently, mirrored, or taken a moment later.

A perceptual hash does not survive a crop of a tenth (measured: docs/photos.md), so the middle of one photo is searched
for in the other, at several scales, by normalised cross-correlation: first at 32 pixels, on luminance; similar pairs
again at 96 pixels, on detail only, and there the surroundings of the middle separately: one cartoon in two poses fails
the first of these, one object before two walls the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.fft import irfft2, rfft2
from PIL import Image, ImageFilter

from .examined import ExaminedPhoto

COARSE_THRESHOLD = 0.8  # correlation at 32 pixels
FINE_THRESHOLD = 0.87  # at 96; the most similar different photos have 0.85, a crop to 70 % about 0.93
_COARSE, _FINE, _SIDE = 32, 96, 256
_SCALES = tuple(np.linspace(0.7, 1.0, 11))  # of the searched photo's side
_SCALE_STEPS = tuple(np.linspace(-0.03, 0.03, 7))
_MIDDLE = 0.85  # of the side: the part that is searched for
_DETAIL = 4.5  # pixels, radius of the blur that is subtracted
_AROUND = 0.7  # of the matched part's half side: the surroundings lie further out
_AROUND_THRESHOLD = 0.5  # least correlation of the surroundings, if they have detail
_PLAIN = 3.0  # levels of 255: less detail than that counts as none
_MAX_CHROMA_DIFFERENCE = 12.0  # levels, between the surroundings' mean Cb and Cr
_NEIGHBOURS = 30  # of a large set, each photo is compared with so many on either side: copies have similar names


@dataclass(frozen=True)
class _SearchImage:
    """An image to search in, (side, side): its spectrum, and the integral images that normalising needs."""

    side: int
    spectrum: np.ndarray
    sums: np.ndarray
    squares: np.ndarray


def near_duplicates(photos: Sequence[ExaminedPhoto]) -> list[tuple[int, ...]]:
    """Return groups of near-duplicates, by their indices."""
    group = list(range(len(photos)))
    for a, b in _candidate_pairs(photos):
        if group[a] != group[b] and photos[a].compare(_is_same, photos[b]):
            old, new = group[b], group[a]
            group = [new if label == old else label for label in group]
    groups = [tuple(i for i, label in enumerate(group) if label == first) for first in sorted(set(group))]
    return [members for members in groups if len(members) > 1]


def _candidate_pairs(photos: Sequence[ExaminedPhoto]) -> Iterator[tuple[int, int]]:
    """Yield the pairs that match at the coarse size."""
    spectra: dict[ExaminedPhoto, list[np.ndarray]] = {}  # for each scale, of a photo and its mirror image: (2, f, f)
    best = np.zeros((len(photos), len(photos)))
    for i, photo in enumerate(photos):
        others = [j for j in range(max(0, i - _NEIGHBOURS), min(len(photos), i + _NEIGHBOURS + 1)) if j != i]
        new = [photos[j] for j in others if _coarse_matches not in photo.compared(photos[j])]
        for other in new:
            if other not in spectra:
                spectra[other] = [_template(image, _COARSE)[0] for image in other.measure(_scaled_luminances)]
        if new:
            matches = _coarse_matches(photo.measure(_coarse_search_image), [spectra[other] for other in new])
            for other, match in zip(new, matches, strict=True):
                photo.compared(other)[_coarse_matches] = float(match)
        for j in others:
            best[i, j] = photo.compared(photos[j])[_coarse_matches]
    best = np.maximum(best, best.T)
    yield from zip(*np.nonzero(np.triu(best > COARSE_THRESHOLD, 1)), strict=True)


def _coarse_matches(whole: _SearchImage, spectra: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return the best correlation with each of the photos whose spectra are given for each scale, (n,)."""
    best = np.zeros(len(spectra))
    for number, scale in enumerate(_SCALES):
        size = _middle_size(_scaled_side(scale, _COARSE))
        correlations = _correlate(whole, np.stack([scales[number] for scales in spectra]), size)
        best = np.maximum(best, correlations.max(axis=(1, 2, 3)))
    return best


def _small(square: np.ndarray) -> Image.Image:
    return Image.fromarray(square).resize((_SIDE, _SIDE), Image.Resampling.BOX)


def _coarse_search_image(square: np.ndarray) -> _SearchImage:
    return _search_image(_luminance(_small(square), _COARSE))


def _scaled_luminances(square: np.ndarray) -> list[np.ndarray]:
    """Return the luminance of a photo and of its mirror image at each scale, (2, side, side)."""
    image = _small(square)
    pair = image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return [np.stack([_luminance(part, _scaled_side(scale, _COARSE)) for part in pair]) for scale in _SCALES]


def _is_same(square: np.ndarray, other_square: np.ndarray) -> bool:
    a, b = _small(square), _small(other_square)
    mirrored = b.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return any(_contains_middle(whole, part) for other in (b, mirrored) for whole, part in ((a, other), (other, a)))


def _contains_middle(whole: Image.Image, part: Image.Image) -> bool:
    """Return whether the middle of `part` is in `whole`, searched near the scale at which luminance matches best."""
    coarse = _search_image(_luminance(whole, _COARSE))
    scale = max(_SCALES, key=lambda scale: _best_match(coarse, _luminance(part, _scaled_side(scale, _COARSE)))[0])
    fine = _search_image(_detail(whole, _FINE))
    sides = {_scaled_side(scale + step, _FINE) for step in _SCALE_STEPS}
    (correlation, top, left), side = max((_best_match(fine, _detail(part, side)), side) for side in sides)
    return correlation > FINE_THRESHOLD and _is_same_around(whole, part, side, top, left)


def _is_same_around(whole: Image.Image, part: Image.Image, side: int, top: int, left: int) -> bool:
    """Return whether the surroundings of the middle match too, with the part's middle at (top, left) in the whole."""
    size = _middle_size(side)
    start = (side - size) // 2
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    around = np.maximum(abs(x), abs(y)) > _AROUND
    whole_region = np.s_[top : top + size, left : left + size]
    part_region = np.s_[start : start + size, start : start + size]
    chroma_a, chroma_b = _chroma(whole, _FINE)[whole_region][around], _chroma(part, side)[part_region][around]
    if abs(chroma_a.mean(0) - chroma_b.mean(0)).max() > _MAX_CHROMA_DIFFERENCE:
        return False
    a, b = _detail(whole, _FINE)[whole_region][around], _detail(part, side)[part_region][around]
    if max(a.std(), b.std()) < _PLAIN:
        return True
    return float(np.mean((a - a.mean()) * (b - b.mean()))) > _AROUND_THRESHOLD * max(a.std() * b.std(), _PLAIN)


def _best_match(whole: _SearchImage, part: np.ndarray) -> tuple[float, int, int]:
    """Return the best correlation of the middle of `part`, -1 to 1, and its position: (correlation, top, left)."""
    spectrum, size = _template(part, whole.side)
    correlations = _correlate(whole, spectrum, size)
    top, left = divmod(int(correlations.argmax()), correlations.shape[1])
    return float(correlations[top, left]), top, left


def _search_image(image: np.ndarray) -> _SearchImage:
    side = len(image)
    return _SearchImage(side, rfft2(image, (2 * side, 2 * side)), _integral_image(image), _integral_image(image**2))


def _template(image: np.ndarray, into: int) -> tuple[np.ndarray, int]:
    """Return the spectrum of an image's middle, mean 0 and norm 1, to search in an image of side `into`; and the
    middle's side. image: (..., side, side)."""
    size = _middle_size(image.shape[-1])
    start = (image.shape[-1] - size) // 2
    middle = image[..., start : start + size, start : start + size]
    middle = middle - middle.mean(axis=(-2, -1), keepdims=True)
    length = np.linalg.norm(middle, axis=(-2, -1), keepdims=True)
    length = np.maximum(length, size)  # plain images must not match by their noise
    return rfft2(middle / length, (2 * into, 2 * into)), size


def _correlate(whole: _SearchImage, spectra: np.ndarray, size: int) -> np.ndarray:
    """Return the normalised cross-correlation at every position, (..., places, places). spectra: (..., f, f)."""
    positions = whole.side - size + 1
    products = irfft2(whole.spectrum * np.conj(spectra), (2 * whole.side, 2 * whole.side))[..., :positions, :positions]
    energy = _box_sums(whole.squares, size) - _box_sums(whole.sums, size) ** 2 / size**2
    return products / np.sqrt(np.maximum(energy, size**2))


def _integral_image(values: np.ndarray) -> np.ndarray:
    return np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)


def _box_sums(running: np.ndarray, size: int) -> np.ndarray:
    return running[size:, size:] - running[:-size, size:] - running[size:, :-size] + running[:-size, :-size]


def _scaled_side(scale: float, of: int) -> int:
    return round(scale * of)


def _middle_size(side: int) -> int:
    return round(_MIDDLE * side)


def _luminance(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX), np.float32)


def _chroma(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BOX).convert("YCbCr"), np.float32)[..., 1:]


def _detail(image: Image.Image, side: int) -> np.ndarray:
    small = image.convert("L").resize((side, side), Image.Resampling.BOX)
    soft = small.filter(ImageFilter.GaussianBlur(_DETAIL * side / _FINE))
    return np.asarray(small, np.float32) - np.asarray(soft, np.float32)
