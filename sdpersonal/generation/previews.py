"""Preview images during generation: the prediction of x_0 at a step, decoded at low resolution."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from ..models import StableDiffusion

OnPrediction = Callable[[Callable[[], Tensor]], None]
_FIRST_AFTER = 0.4  # seconds before the first preview: a prediction from pure noise shows little
_TIME_SHARE = 0.06  # the part of the time since generation began that previews may take
_MAX_SIDE = 24  # latents per side: larger ones are averaged down, since decoding time grows with their number


class Previews:
    """Shows previews as often as their share of the time allows.

    show: receives a batch's RGB images, at most `_MAX_SIDE` latents times the VAE scale factor per side.
    """

    def __init__(self, base: StableDiffusion, show: Callable[[list[Image.Image]], None]):
        self._base, self._show = base, show
        self._started_at, self._seconds_spent, self._last_seconds = time.monotonic(), 0.0, 0.0

    def update(self, guess: Callable[[], Tensor]) -> None:
        """Show the prediction of a step, but only if the time share allows a preview as slow as the last."""
        enough = max(_FIRST_AFTER, (self._seconds_spent + self._last_seconds) / _TIME_SHARE)
        if time.monotonic() - self._started_at < enough:
            return
        if self._base.device.type == "cuda":
            torch.cuda.current_stream(self._base.device).synchronize()  # the steps before it are no part of its time
        started = time.monotonic()
        self._show([Image.fromarray(self._base.decode(latent[None])[0]) for latent in _downsample(guess())])
        self._last_seconds = time.monotonic() - started
        self._seconds_spent += self._last_seconds


def _downsample(latents: Tensor) -> Tensor:
    factor = -(-max(latents.shape[2:]) // _MAX_SIDE)
    return torch.nn.functional.avg_pool2d(latents, factor) if factor > 1 else latents
