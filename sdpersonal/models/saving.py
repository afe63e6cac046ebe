"""A base as a folder in diffusers layout, for this program and every other that reads such folders."""

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
    """Write a base as it is, each weight in the precision that it has now; slots are not part of it.

    The folder appears whole or not at all. Raises DiskFull, or UserError where it is there already.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    parts = {"unet": base.unet, "vae": base.vae, "scheduler": base.sampler()}
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        if encoder := base.encoders.get(key):
            parts |= {f"text_encoder{end}": encoder.model, f"tokenizer{end}": encoder.tokenizer}
    with storage.new_folder(folder) as staged, silence_libraries():
        if base.kind == "sdxl":
            pipe = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=base.zero_empty)
        else:
            pipe = StableDiffusionPipeline(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        try:
            pipe.save_pretrained(staged, safe_serialization=True)
        except SafetensorError as error:  # it hides the system's own, by which a full disk is known
            if "os error 28" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise
