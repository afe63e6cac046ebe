"""Generate class images for prior preservation, which the base model makes once for every concept of the class.

Each image is stored as latents in a file named by its number, in a folder named by all that it depends on: the class
prompt, the base's weights, the size. So an interrupted generation is resumed, several processes share the work without
communication, and no foreign file is ever counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .. import storage
from ..errors import UserError
from ..generation import SamplingConfig, StepConditioning, denoise, noise_from_seed
from ..models import Conditioning, LatentDistribution, SizeConditioning, StableDiffusion
from ..models.offload import place_for_training, plan_offload
from .run_dir import RUNS_FOLDER

CLASS_IMAGES_FOLDER = RUNS_FOLDER / "class-pictures"
STEPS = 25
_MAX_BATCH_SIZE = 8  # on a card; a larger one saves no time, and an interrupted run loses its batch
_MAX_BYTES = 16 << 20


def class_images_folder(base: StableDiffusion, prompt: str, side: int) -> Path:
    """Return the folder of this base model's images of this prompt."""
    slug = "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in prompt.lower()).split())[:40]
    key = storage.sha256(f"{base.version}:{prompt}:{side}".encode())[:12]
    return CLASS_IMAGES_FOLDER / f"{slug or 'class'}-{key}"


def generate_missing(
    base: StableDiffusion, prompt: str, side: int, numbers: Sequence[int], say: Callable[[str], None]
) -> None:
    """Generate those of the images `numbers` that are missing; image i is generated from seed i.

    Raises DiskFull; finished images stay.
    """
    folder = class_images_folder(base, prompt, side)
    missing = [number for number in numbers if _load(base, folder, number, side) is None]
    if not missing:
        return
    say(f"Generating {len(missing)} class images of {prompt!r} in {folder}.")
    storage.make_folder(folder)
    with base.exclusive(), base.adapters.disabled():
        batch_size = _place(base, side)
        conditioning = base.encode_captions([[""], [prompt]], [SizeConditioning.full(side, side)] * 2)
        for first in range(0, len(missing), batch_size):
            batch = missing[first : first + batch_size]
            for number, latents in zip(batch, _generate(base, conditioning, batch, side), strict=True):
                storage.write_bytes(_path(folder, number), save({"latents": latents.contiguous()}))
        base.replayer.clear()  # training needs the memory
        place_for_training(base, (side, side))  # before the method changes the weights


def _place(base: StableDiffusion, side: int) -> int:
    """Place the models and return the batch size. On a CPU it is 1: more would save little, and round differently."""
    if base.device.type != "cuda":
        return 1
    plan = plan_offload(base, (side, side), _MAX_BATCH_SIZE)
    base.offloader.apply_plan(plan)
    return plan.batch_size


def _generate(base: StableDiffusion, conditioning: Conditioning, numbers: Sequence[int], side: int) -> Tensor:
    """Return the latents of images, (B, C, h, w) on the CPU. conditioning: of the negative prompt and the prompt."""
    noise = torch.stack([noise_from_seed(number, base.latent_shape(side, side)) for number in numbers])
    rows = StepConditioning(conditioning[torch.tensor([0, 1]).repeat_interleave(len(numbers))])
    return denoise(base, lambda *_: rows, noise.to(base.device), SamplingConfig(STEPS, base.guidance)).cpu()


def load_latents(base: StableDiffusion, prompt: str, side: int, count: int) -> list[LatentDistribution]:
    """Load the first `count` images as distributions of std 0. Raises UserError if one is missing."""
    folder = class_images_folder(base, prompt, side)
    loaded = [_load(base, folder, number, side) for number in range(count)]
    latents = [latent for latent in loaded if latent is not None]
    if len(latents) < count:
        raise UserError(
            f"{count - len(latents)} of {count} class images are missing in {folder}.",
            "Start the training again; it generates only these.",
        )
    return [
        LatentDistribution(latent[None].to(base.device), torch.zeros_like(latent[None], device=base.device))
        for latent in latents
    ]


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def _load(base: StableDiffusion, folder: Path, number: int, side: int) -> Tensor | None:
    path = _path(folder, number)
    if not path.exists():
        return None
    try:
        latents = load(storage.read_bytes(path, _MAX_BYTES))["latents"].float()
    except (UserError, SafetensorError, KeyError):
        return None
    valid = tuple(latents.shape) == base.latent_shape(side, side) and bool(torch.isfinite(latents).all())
    return latents if valid else None
