"""Generate images with a method during training, as the concept would if the run ended here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from ..generation import MAX_BATCH_SIZE, SamplingConfig, denoise, noise_from_seed
from ..models import SizeConditioning, StableDiffusion

CaptionToPieces = Callable[[str], Sequence[object]]
"""A caption with {} for the subject -> what `encode_captions` takes: `Method.words`, or with a plain noun."""


def generate_samples(
    base: StableDiffusion, words: CaptionToPieces, asked: Sequence[tuple[str, int]], side: int, steps: int
) -> list[Image.Image]:
    """Generate an image for each (prompt, seed) with the LoRA layers as they are. side: in pixels."""
    images: list[Image.Image] = []
    for first in range(0, len(asked), MAX_BATCH_SIZE):
        chunk = asked[first : first + MAX_BATCH_SIZE]
        with base.quiet():
            prompts = [[""]] * len(chunk) + [words(prompt) for prompt, _ in chunk]
            condition = base.encode_captions(prompts, [SizeConditioning.whole(side, side)] * (2 * len(chunk)))
            noise = torch.stack([noise_from_seed(seed, base.latent_shape(side, side)) for _, seed in chunk]).to(
                base.device
            )
            latents = denoise(base, condition, noise, SamplingConfig(steps, base.guidance))
            images += [Image.fromarray(pixels) for pixels in base.decode(latents)]
    return images
