"""What the doctor asks of a CLIP: features of pictures and of texts that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image


class ClipFeatures(Protocol):
    """Both methods return float rows of length 1: (N, d), the same d."""

    def image_features(self, pictures: Sequence[Image.Image]) -> np.ndarray: ...

    def read(self, texts: Sequence[str]) -> np.ndarray: ...
