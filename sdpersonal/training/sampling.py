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
    base: StableDiffusion,
    caption_pieces: CaptionToPieces,
    prompts_and_seeds: Sequence[tuple[str, int]],
    resolution: int,
    steps: int,
) -> list[Image.Image]:
    """Generate an image for each (prompt, seed) with the LoRA layers as they are. side: in pixels."""
    images: list[Image.Image] = []
    for first in range(0, len(prompts_and_seeds), MAX_BATCH_SIZE):
        chunk = prompts_and_seeds[first : first + MAX_BATCH_SIZE]
        with base.exclusive():
            prompts = [[""]] * len(chunk) + [caption_pieces(prompt) for prompt, _ in chunk]
            images += _generate_batch(base, prompts, [seed for _, seed in chunk], resolution, steps)
    return images


def _generate_batch(
    base: StableDiffusion, prompts: Sequence[Sequence[object]], seeds: Sequence[int], resolution: int, steps: int
) -> list[Image.Image]:
    """Generate one image per seed. prompts: the negative ones first."""
    conditioning = base.encode_captions(prompts, [SizeConditioning.full(resolution, resolution)] * len(prompts))
    shape = base.latent_shape(resolution, resolution)
    noise = torch.stack([noise_from_seed(seed, shape) for seed in seeds]).to(base.device)
    latents = denoise(base, lambda progress: conditioning, noise, SamplingConfig(steps, base.guidance))
    return [Image.fromarray(pixels) for pixels in base.decode(latents)]
