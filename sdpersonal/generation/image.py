"""A generated image with its recipe, and previews of it during generation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..image_metadata import Recipe, png_with_recipe
from ..models import StableDiffusion

OnPrediction = Callable[[Callable[[], Tensor]], None]
_FIRST_AFTER = 0.4  # seconds before the first preview: a prediction from pure noise shows little
_TIME_SHARE = 0.06  # the part of the time since generation began that previews may take
_MAX_SIDE = 24  # latents per side: larger ones are averaged down, since decoding time grows with their number


@dataclass(frozen=True)
class GeneratedImage:
    """A generated RGB image and all that is needed to generate it again."""

    image: Image.Image
    recipe: Recipe

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def hidden(self) -> bool:
        """Whether the base's safety checker flagged it: the image is plain grey."""
        return self.recipe.hidden

    def to_png(self, private: bool = False) -> bytes:
        """Return the image as a PNG file, with its recipe or, if `private`, with pixels only."""
        return png_with_recipe(self.image, None if private else self.recipe)


class Previews:
    """Shows previews as often as their share of the time allows.

    show: receives a batch's RGB images, at most `_MAX_SIDE` latents times the VAE scale factor per side.
    """

    def __init__(self, base: StableDiffusion, show: Callable[[list[Image.Image]], None]):
        self._base, self._show = base, show
        self._started_at, self._seconds_spent, self._last_seconds = time.monotonic(), 0.0, 0.0

    def update(self, guess: Callable[[], Tensor]) -> None:
        """Show the prediction of a step, but only if the time share allows a preview as slow as the last."""
        started = time.monotonic()
        if started - self._started_at < max(_FIRST_AFTER, (self._seconds_spent + self._last_seconds) / _TIME_SHARE):
            return
        self._show([Image.fromarray(self._base.decode(latent[None])[0]) for latent in _downsample(guess())])
        self._last_seconds = time.monotonic() - started
        self._seconds_spent += self._last_seconds


def _downsample(latents: Tensor) -> Tensor:
    factor = -(-max(latents.shape[2:]) // _MAX_SIDE)
    return torch.nn.functional.avg_pool2d(latents, factor) if factor > 1 else latents
