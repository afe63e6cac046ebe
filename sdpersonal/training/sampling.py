"""Pictures from a method while it is taught, as the concept would draw them if it ended here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from ..generation import MAX_BATCH_SIZE, SamplingConfig, denoise, noise_from_seed
from ..models import SizeConditioning, StableDiffusion

CaptionToPieces = Callable[[str], Sequence[object]]
"""A caption with {} for the subject -> what `condition` takes: `Method.words`, or a plain noun put in."""


def generate_samples(
    base: StableDiffusion, words: CaptionToPieces, asked: Sequence[tuple[str, int]], side: int, steps: int
) -> list[Image.Image]:
    """A picture for each (prompt, seed) with what the slots hold now, which stays as it is. side: in pixels."""
    pictures: list[Image.Image] = []
    for first in range(0, len(asked), MAX_BATCH_SIZE):
        some = asked[first : first + MAX_BATCH_SIZE]
        with base.quiet():
            prompts = [[""]] * len(some) + [words(prompt) for prompt, _ in some]
            condition = base.encode_captions(prompts, [SizeConditioning.whole(side, side)] * (2 * len(some)))
            noise = torch.stack([noise_from_seed(seed, base.latent_shape(side, side)) for _, seed in some]).to(
                base.device
            )
            latents = denoise(base, condition, noise, SamplingConfig(steps, base.guidance))
            pictures += [Image.fromarray(one) for one in base.decode(latents)]
    return pictures
