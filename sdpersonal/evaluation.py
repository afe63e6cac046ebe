"""How good a concept is, in numbers (DreamBooth, Ruiz et al. 2022, section 4.1): likeness and prompt fidelity.

The judge is the small CLIP (Radford et al. 2021) that ships with the built-in base. It saw only that base's world, so
its figures mean something there, and only beside a floor and a ceiling: other subjects, and real photos of the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .bases.loading import built_in_folder, silent
from .errors import PersonalError


class Judge:
    """A CLIP with both towers."""

    def __init__(self, folder: Path | None = None):
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        folder = folder or built_in_folder() / "judge"
        if not folder.is_dir():
            raise PersonalError(f"There is no judge in {folder}.", "Install sdpersonal again.")
        with silent():
            self._model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
            self._prepare = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    def likeness(self, pictures: Sequence[Image.Image], photos: Sequence[Image.Image]) -> float:
        """CLIP-I: the mean cosine between each picture and each photo, -1 to 1."""
        return float((self._see(pictures) @ self._see(photos).T).mean())

    def fidelity(self, pictures: Sequence[Image.Image], text: str) -> float:
        """CLIP-T: the mean cosine between the pictures and a text that describes them, -1 to 1."""
        return float((self._see(pictures) @ self._read([text]).T).mean())

    def which(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[int]:
        """For each picture, the number of the text that describes it best."""
        return (self._see(pictures) @ self._read(texts).T).argmax(dim=1).tolist()

    @torch.no_grad()
    def _see(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = self._prepare([picture.convert("RGB") for picture in pictures], return_tensors="pt").pixel_values
        return _unit(self._model.get_image_features(pixels))

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> Tensor:
        ids = self._tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return _unit(self._model.get_text_features(**ids))


def _unit(features: Tensor | object) -> Tensor:
    features = features if isinstance(features, Tensor) else features.pooler_output  # transformers 5 wraps it
    return torch.nn.functional.normalize(features.float(), dim=-1)  # (B, d)
