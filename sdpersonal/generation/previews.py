"""How a picture looks while it is being drawn: what the model holds it for at a step, decoded small."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from ..models import StableDiffusion

OnPrediction = Callable[[Callable[[], Tensor]], None]
_FIRST_AFTER = 0.4  # seconds before the first one: there is little to see in what is guessed from pure noise
_TIME_SHARE = 0.06  # of the time since the drawing began that previews may take
_MAX_SIDE = 24  # latents, a side: larger ones are averaged down, since decoding's time goes with their number


class Previews:
    """Shows previews as often as their own time allows.

    show: gets RGB pictures, a batch's, each at most `_SIDE` latents times the base's downscale on a side.
    """

    def __init__(self, base: StableDiffusion, show: Callable[[list[Image.Image]], None]):
        self._base, self._show = base, show
        self._started_at, self._seconds_spent, self._last_seconds = time.monotonic(), 0.0, 0.0

    def look(self, guess: Callable[[], Tensor]) -> None:
        """After each step; decodes only where the share of time allows one more like the last."""
        begun = time.monotonic()
        if begun - self._started_at < max(_FIRST_AFTER, (self._seconds_spent + self._last_seconds) / _TIME_SHARE):
            return
        self._show([Image.fromarray(self._base.decode(one[None])[0]) for one in _downsample(guess())])
        self._last_seconds = time.monotonic() - begun
        self._seconds_spent += self._last_seconds


def _downsample(latents: Tensor) -> Tensor:
    times = -(-max(latents.shape[2:]) // _MAX_SIDE)
    return torch.nn.functional.avg_pool2d(latents, times) if times > 1 else latents
