"""Run the safety checker that some models include, such as Stable Diffusion 1.x.

With CLIP it compares each image with seventeen concepts that its makers did not want to see. It covers sexual content
only, and is easily misled in both directions (Rando et al. 2022, arXiv 2210.04610).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import nn

from .host_copies import HostCopies
from .loading.diffusers_folder import find_weights, load_strictly, read_config, require_weights, translate_load_errors
from .loading.weights import check_complete, silence_libraries

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil

SUBFOLDER = "safety_checker"
NO_CHECKER = "This model comes without a safety checker."
_GREY_RGB = (128, 128, 128)


class SafetyChecker:
    """The safety checker in a model's folder.

    Its weights (0.6 GB in half precision) are loaded at the first use, and are on the device only while it runs.
    """

    def __init__(self, base: Path, device: torch.device):
        self._base, self._device = base, device
        self._models: tuple[nn.Module, CLIPImageProcessorPil] | None = None
        self._copies: HostCopies | None = None

    def load(self) -> tuple[nn.Module, CLIPImageProcessorPil]:
        """Return the model and its image processor, loaded at the first call. Raises UserError for damaged files."""
        if self._models is None:
            self._models = self._load()
            self._copies = HostCopies(self._models[0], self._device) if self._device.type == "cuda" else None
        return self._models

    def _load(self) -> tuple[nn.Module, CLIPImageProcessorPil]:
        # This processor does not need torchvision, so its results do not depend on whether that is installed.
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessorPil

        dtype = torch.float16 if self._device.type == "cuda" else torch.float32
        variant, paths = require_weights(self._base, SUBFOLDER)
        check_complete(paths)
        processor_folder = self._base / "feature_extractor"
        with translate_load_errors(
            self._base / SUBFOLDER, "safety checker", "Fetch it again, or leave it out with --no-safety-checker."
        ):
            has_config = (processor_folder / "preprocessor_config.json").exists()
            processor = (
                CLIPImageProcessorPil.from_pretrained(processor_folder) if has_config else CLIPImageProcessorPil()
            )
            with silence_libraries():
                model = load_strictly(StableDiffusionSafetyChecker, self._base / SUBFOLDER, variant, dtype)
        return model.requires_grad_(False).eval(), processor

    def flag(self, images: Sequence[Image.Image]) -> list[bool]:
        """Return for each RGB image whether it must be hidden. Raises UserError as `load` does."""
        model, processor = self.load()
        pixels = processor(list(images), return_tensors="pt").pixel_values  # (B, 3, 224, 224)
        pixels = pixels.to(self._device, next(model.parameters()).dtype)
        if self._copies:
            self._copies.to_device()
        try:
            with silence_libraries():  # it warns of black images
                # Its forward also blackens the images passed beside the pixels; dummies suffice for the flags.
                _, flags = model(pixels, [torch.zeros(1) for _ in images])
        finally:
            if self._copies:
                self._copies.to_host()
        return [bool(flag) for flag in flags]


def find_checker(base: Path, device: torch.device, enabled: bool = True) -> tuple[SafetyChecker | None, str]:
    """Return a model's checker, or None, and a note for the user. A single file never has a checker.

    base: a folder in diffusers layout, or a single file.
    """
    if not _has_checker(base):
        return None, NO_CHECKER
    if not enabled:
        return None, "Its safety checker is off."
    if not find_weights(base, SUBFOLDER):
        return None, "Its safety checker is not on this machine as safetensors: images are not checked."
    return SafetyChecker(base, device), "Its safety checker is on."


def _has_checker(folder: Path) -> bool:
    if find_weights(folder, SUBFOLDER):
        return True
    try:
        entry = read_config(folder / "model_index.json").get(SUBFOLDER)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(entry, list) and bool(entry) and entry[-1] is not None


def grey_image(size: tuple[int, int]) -> Image.Image:
    """Return the grey image that is shown in place of a hidden one."""
    return Image.new("RGB", size, _GREY_RGB)
