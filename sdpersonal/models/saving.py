"""Save a model as a folder in diffusers layout, for this program and every other that reads such folders."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from .. import storage
from .loading.weights import silence_libraries

if TYPE_CHECKING:
    from .stable_diffusion import StableDiffusion


def save_diffusers_folder(base: StableDiffusion, folder: Path) -> None:
    """Write a model, each weight in its present precision; LoRA adapters are not saved.

    The folder appears complete or not at all. Raises DiskFull, or UserError if it exists already.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    components = {"unet": base.unet, "vae": base.vae, "scheduler": base.make_scheduler()}
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        if encoder := base.encoders.get(key):
            components |= {f"text_encoder{suffix}": encoder.model, f"tokenizer{suffix}": encoder.tokenizer}
    with storage.new_folder(folder) as staged, silence_libraries():
        if base.kind == "sdxl":
            pipe = StableDiffusionXLPipeline(
                **components, force_zeros_for_empty_prompt=base.force_zeros_for_empty_prompt
            )
        else:
            pipe = StableDiffusionPipeline(
                **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        try:
            pipe.save_pretrained(staged, safe_serialization=True)
        except SafetensorError as error:  # it hides the OSError by which a full disk is recognised
            if "os error 28" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise
