"""Hold a photo as the checks see it, with what was measured of it, which other checks need not repeat."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from ..loading import Photo

T = TypeVar("T")


class ExaminedPhoto:
    """One photo of a set that is checked.

    name: for display; original_size: (H, W) before scaling; captioned: whether it has captions; load: returns its
    square, uint8 (S, S, 3), which is the same each time. Checking a set in which one photo has changed takes little
    time if the others are the same objects as before.
    """

    def __init__(self, name: str, original_size: tuple[int, int], captioned: bool, load: Callable[[], np.ndarray]):
        self.name, self.original_size, self.captioned = name, original_size, captioned
        self._load = load
        self._pixels: np.ndarray | None = None
        self._measured: dict[Hashable, Any] = {}
        self._compared: WeakKeyDictionary[ExaminedPhoto, dict[Hashable, Any]] = WeakKeyDictionary()

    @classmethod
    def of(cls, photo: Photo) -> ExaminedPhoto:
        return cls(photo.name, photo.original_size, bool(photo.captions), photo.square)

    def square(self) -> np.ndarray:
        """Return the square, kept until `release`."""
        if self._pixels is None:
            self._pixels = self._load()
        return self._pixels

    def hold(self, square: np.ndarray) -> None:
        """Keep the square, which was just loaded, until `release`."""
        self._pixels = square

    def release(self) -> None:
        """Drop the pixels, but not what was measured."""
        self._pixels = None

    def measure(self, function: Callable[[np.ndarray], T]) -> T:
        """Return `function(square)`."""
        if function not in self._measured:
            self._measured[function] = function(self.square())
        return self._measured[function]

    def compared(self, other: ExaminedPhoto) -> dict[Hashable, Any]:
        """Return what is known of this photo beside the other, by the function that compared them, to add to it."""
        return self._compared.setdefault(other, {})

    def compare(self, function: Callable[[np.ndarray, np.ndarray], T], other: ExaminedPhoto) -> T:
        """Return `function(square, other's square)`."""
        known = self.compared(other)
        if function not in known:
            known[function] = function(self.square(), other.square())
        return known[function]


def measure_all(
    photos: Sequence[ExaminedPhoto], key: Hashable, function: Callable[[list[np.ndarray]], np.ndarray]
) -> np.ndarray:
    """Return `function(squares)`, a row for each photo, computed at once for the photos without it.

    key: of the function, since it may be a lambda.
    """
    missing = [photo for photo in photos if key not in photo._measured]
    if missing:
        for photo, row in zip(missing, function([photo.square() for photo in missing]), strict=True):
            photo._measured[key] = row
    return np.stack([photo._measured[key] for photo in photos])
