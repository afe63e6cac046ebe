"""The safety checker that a base may bring (Stable Diffusion 1.x does): CLIP compares each picture with seventeen
concepts that its makers did not want to see.

It covers sexual content alone, and is easily misled either way (Rando et al. 2022, arXiv 2210.04610).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from .loading.diffusers_folder import find_weights, load_strictly, read_config, translate_load_errors
from .loading.weights import check_complete, silence_libraries

SUBFOLDER = "safety_checker"
NO_CHECKER = "This base comes without a safety checker."
_GREY_RGB = (128, 128, 128)


class SafetyChecker:
    """A checker in a base's folder. Its weights (0.6 GB in half precision) are read when they are first needed, and are
    on the device only while it looks."""

    def __init__(self, base: Path, device: torch.device):
        self._base, self._device = base, device
        self._model = self._processor = None

    def load(self) -> SafetyChecker:
        """Ready to look at pictures. Raises UserError where its files are damaged."""
        if self._model is not None:
            return self
        # The processor that needs no torchvision, and so prepares alike whether it is installed or not.
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessorPil

        dtype = torch.float16 if self._device.type == "cuda" else torch.float32
        variant, paths = find_weights(self._base, SUBFOLDER)
        check_complete(paths)
        prepares = self._base / "feature_extractor"
        with translate_load_errors(
            self._base / SUBFOLDER, "safety checker", "Fetch it again, or leave it out with --no-safety-checker."
        ):
            known = (prepares / "preprocessor_config.json").exists()
            prepare = CLIPImageProcessorPil.from_pretrained(prepares) if known else CLIPImageProcessorPil()
            with silence_libraries():
                model = load_strictly(StableDiffusionSafetyChecker, self._base / SUBFOLDER, variant, dtype)
        self._model, self._processor = model.requires_grad_(False).eval(), prepare
        return self

    def flag(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """Which of some RGB pictures it would hide. Raises UserError as `load` does."""
        self.load()
        pixels = self._processor(list(pictures), return_tensors="pt").pixel_values  # (B, 3, 224, 224)
        model = self._model.to(self._device)
        try:
            with silence_libraries():  # it warns of black pictures
                # Its forward blackens what it is given beside them; we only ask.
                _, flags = model(pixels.to(self._device, model.dtype), [torch.zeros(1) for _ in pictures])
        finally:
            model.to("cpu")
        return [bool(flag) for flag in flags]


def find_checker(base: Path, device: torch.device, wanted: bool = True) -> tuple[SafetyChecker | None, str]:
    """The checker of a base, a folder in diffusers layout or a single file (which has none), and what to say of it."""
    if not _has_checker(base):
        return None, NO_CHECKER
    if not wanted:
        return None, "Its safety checker is off."
    if not find_weights(base, SUBFOLDER):
        return None, "Its safety checker is not on this machine as safetensors: pictures are not checked."
    return SafetyChecker(base, device), "Its safety checker is on."


def _has_checker(folder: Path) -> bool:
    if find_weights(folder, SUBFOLDER):
        return True
    try:
        named = read_config(folder / "model_index.json").get(SUBFOLDER)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(named, list) and bool(named) and named[-1] is not None


def grey_image(size: tuple[int, int]) -> Image.Image:
    """What stands where a picture is hidden."""
    return Image.new("RGB", size, _GREY_RGB)
