"""Generate samples: with a method during training, and with the new concept at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from .. import storage
from ..concepts.concept import Concept
from ..concepts.thumbnail import make_thumbnail
from ..config import GenerateRequest
from ..display.image_grid import encode_png, labelled_grid
from ..errors import OutOfMemory
from ..generation import MAX_BATCH_SIZE, Generator, SamplingConfig, StepConditioning, denoise, noise_from_seed
from ..models import SizeConditioning, StableDiffusion
from ..models.offload import place_for_training
from ..models.oom import drop_traceback, is_out_of_memory, translate_oom
from ..prompts import Token
from .dataset import CaptionPieces, CaptionSplitter
from .objective import autocast
from .prompt_templates import SAMPLE_PROMPTS
from .run_dir import SAMPLES_FILE

_SEEDS = 3  # images of each prompt in the sample sheet
_SPARE_BYTES = 1 << 30
_MAX_BATCH_SIZE_ON_CARD = 8  # all images of a validation: few of them wait for the CPU that launches the kernels


def generate_samples(
    base: StableDiffusion,
    caption_pieces: CaptionSplitter,
    prompts_and_seeds: Sequence[tuple[str, int]],
    resolution: int,
    steps: int,
    autocast_dtype: torch.dtype | None = None,
) -> list[Image.Image]:
    """Generate an image for each (prompt, seed) with the LoRA layers as they are.

    resolution: side of the images in pixels; steps: denoising steps; autocast_dtype: see `Method`. Batches are smaller
    where memory is short.
    """
    images: list[Image.Image] = []
    with base.exclusive():
        most = _MAX_BATCH_SIZE_ON_CARD if base.device.type == "cuda" else MAX_BATCH_SIZE
        batch_size = place_for_training(base, (resolution, resolution), most)
        while len(images) < len(prompts_and_seeds):
            chunk = prompts_and_seeds[len(images) : len(images) + batch_size]
            negatives: list[CaptionPieces] = [[""]] * len(chunk)
            prompts = negatives + [caption_pieces(prompt) for prompt, _ in chunk]
            seeds = [seed for _, seed in chunk]
            try:
                images += _generate_batch(base, prompts, seeds, resolution, steps, autocast_dtype)
            except (RuntimeError, MemoryError) as error:
                if len(chunk) == 1 or not is_out_of_memory(error):
                    raise
                drop_traceback(error, base.device)
                batch_size = len(chunk) // 2
        base.offloader.to_device("unet")  # so that the autoencoder leaves
        _release_graphs_if_short(base)
    return images


def _release_graphs_if_short(base: StableDiffusion) -> None:
    """Drop the UNet's CUDA graphs, which keep their activations, unless what took most memory so far fits beside them:
    a training step."""
    if base.device.type == "cuda":
        step = torch.cuda.max_memory_allocated(base.device) - torch.cuda.memory_allocated(base.device)
        if step + _SPARE_BYTES > torch.cuda.mem_get_info(base.device)[0]:
            base.replayer.clear()


def _generate_batch(
    base: StableDiffusion,
    prompts: Sequence[CaptionPieces],
    seeds: Sequence[int],
    resolution: int,
    steps: int,
    autocast_dtype: torch.dtype | None,
) -> list[Image.Image]:
    """Generate one image per seed. prompts: the negative ones first."""
    conditioning = base.encode_captions(prompts, [SizeConditioning.full(resolution, resolution)] * len(prompts))
    shape = base.latent_shape(resolution, resolution)
    noise = torch.stack([noise_from_seed(seed, shape) for seed in seeds]).to(base.device)
    with autocast(base.device, autocast_dtype):  # the autoencoder is not part of it: SDXL's needs fp32
        latents = denoise(base, lambda *_: StepConditioning(conditioning), noise, SamplingConfig(steps, base.guidance))
    # On a card one at a time, as its memory is planned.
    parts = latents.split(1) if base.device.type == "cuda" else [latents]
    return [Image.fromarray(pixels) for part in parts for pixels in base.decode(part)]


def add_sample_sheet(
    concept: Concept, base: StableDiffusion, run: Path, say: Callable[[str], None]
) -> tuple[Concept, Path | None]:
    """Return the concept with its first image as thumbnail, and the sheet. Both are left out if memory is too small:
    the trained concept is worth more than its images."""
    try:
        with translate_oom("while generating samples", "", base.device):
            return _generate_sheet(concept, base, run)
    except OutOfMemory:
        pass
    say("There is no memory left for samples, so the concept has none. Generate some: sdpersonal generate.")
    return concept, None


def _generate_sheet(concept: Concept, base: StableDiffusion, run: Path) -> tuple[Concept, Path]:
    prompts = [prompt.format(concept.token) for prompt in SAMPLE_PROMPTS[concept.card.kind]]
    generator = Generator(base, _OneConceptLibrary(concept))
    rows = [
        [result.image for result in generator.generate(GenerateRequest(prompt=prompt, num_images=_SEEDS))]
        for prompt in prompts
    ]
    sheet = run / SAMPLES_FILE
    storage.write_bytes(sheet, encode_png(labelled_grid(rows, prompts, [f"seed {i}" for i in range(_SEEDS)])))
    return replace(concept, thumbnail=make_thumbnail(rows[0][0])), sheet


class _OneConceptLibrary:
    """A library of the one concept, which is not in any real one yet."""

    def __init__(self, concept: Concept):
        self._concept = concept

    def get(self, token: Token) -> Concept:
        return self._concept
