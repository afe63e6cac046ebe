"""Pictures from a method while it is taught, as the concept would draw them if it ended here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from ..generation import AT_ONCE, Sampling, denoise, noise_of
from ..models import Framing, StableDiffusion

Words = Callable[[str], Sequence[object]]
"""A caption with {} for the subject -> what `condition` takes: `Method.words`, or a plain noun put in."""


def draw(
    base: StableDiffusion, words: Words, asked: Sequence[tuple[str, int]], side: int, steps: int
) -> list[Image.Image]:
    """A picture for each (prompt, seed) with what the slots hold now, which stays as it is. side: in pixels."""
    pictures: list[Image.Image] = []
    for first in range(0, len(asked), AT_ONCE):
        some = asked[first : first + AT_ONCE]
        with base.quiet():
            prompts = [[""]] * len(some) + [words(prompt) for prompt, _ in some]
            condition = base.condition(prompts, [Framing.whole(side, side)] * (2 * len(some)))
            noise = torch.stack([noise_of(seed, base.latent_shape(side, side)) for _, seed in some]).to(base.device)
            latents = denoise(base, condition, noise, Sampling(steps, base.guidance))
            pictures += [Image.fromarray(one) for one in base.decode(latents)]
    return pictures
