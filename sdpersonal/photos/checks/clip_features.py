"""The interface to CLIP: comparable features of images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image


class ClipFeatures(Protocol):
    """Image and text features. Both methods return float rows of length 1: (N, d), with the same d."""

    def image_features(self, images: Sequence[Image.Image]) -> np.ndarray: ...

    def text_features(self, texts: Sequence[str]) -> np.ndarray: ...
