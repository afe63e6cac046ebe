"""Who judges pictures: a CLIP (Radford et al. 2021) for what they show and, where there is one, a DINO (Caron et al.
2021) for whose picture it is, as in the DreamBooth paper (Ruiz et al. 2022, section 4.1).

The built-in base is judged by the small CLIP that ships with it. It saw only that base's world, so its figures mean
something there, and only beside a floor and a ceiling: other subjects, and real photos of the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..bases.hub import snapshot
from ..bases.loading import built_in_folder, silent
from ..errors import PersonalError

CLIPS = ("openai/clip-vit-base-patch32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
DINOS = ("facebook/dino-vits16",)
FETCH = f"hf download {CLIPS[0]}"  # what a user types to have one
_AT_ONCE = 32  # pictures


class Judge:
    """A CLIP with both towers, and a DINO if there is one. Raises PersonalError where their files are not there.

    scale: what CLIP multiplies its cosines with before a softmax.
    """

    def __init__(self, clip: Path | None = None, dino: Path | None = None):
        from transformers import AutoImageProcessor, AutoModel, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        clip = clip or built_in_folder() / "judge"
        if not clip.is_dir():
            raise PersonalError(f"There is no judge in {clip}.", "Install sdpersonal again.")
        common = {"local_files_only": True}
        weights = common | {"dtype": torch.float32, "use_safetensors": True}
        with silent():
            self._clip = CLIPModel.from_pretrained(clip, **weights).eval()
            self._prepare = CLIPImageProcessorPil.from_pretrained(clip, **common)
            self._tokenizer = CLIPTokenizer.from_pretrained(clip, **common)
            self._dino = AutoModel.from_pretrained(dino, **weights).eval() if dino else None
            self._prepare_dino = AutoImageProcessor.from_pretrained(dino, **common) if dino else None
        self.name = "the built-in CLIP" if clip == built_in_folder() / "judge" else "CLIP ViT-B/32"
        self.name += " and DINO ViT-S/16" if dino else ""
        self.scale = float(self._clip.logit_scale.detach().exp())

    def likeness(self, pictures: Sequence[Image.Image], photos: Sequence[Image.Image]) -> float:
        """CLIP-I: the mean cosine between each picture and each photo, -1 to 1."""
        return float((self.see(pictures) @ self.see(photos).T).mean())

    def fidelity(self, pictures: Sequence[Image.Image], text: str) -> float:
        """CLIP-T: the mean cosine between the pictures and a text that describes them, -1 to 1."""
        return float((self.see(pictures) @ self.read([text]).T).mean())

    def which(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[int]:
        """For each picture, the number of the text that describes it best."""
        return (self.see(pictures) @ self.read(texts).T).argmax(axis=1).tolist()

    def see(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """CLIP's features of pictures, (N, d) fp32, each of length 1."""
        return self._features(pictures, self._prepare, lambda pixels: self._clip.get_image_features(pixels))

    def subject(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Features that tell one subject from another of its class, (N, d): DINO's, which was never taught that two
        dogs are one word, or else CLIP's."""
        if self._dino is None:
            return self.see(pictures)
        return self._features(pictures, self._prepare_dino, lambda pixels: self._dino(pixels).last_hidden_state[:, 0])

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> np.ndarray:
        """CLIP's features of texts, (N, d) fp32, each of length 1."""
        ids = self._tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return _unit(self._clip.get_text_features(**ids))

    @torch.no_grad()
    def _features(self, pictures: Sequence[Image.Image], prepare, look) -> np.ndarray:
        found = []
        for first in range(0, len(pictures), _AT_ONCE):
            some = [picture.convert("RGB") for picture in pictures[first : first + _AT_ONCE]]
            found.append(_unit(look(prepare(some, return_tensors="pt").pixel_values)))
        return np.concatenate(found)


def judge_for(base_kind: str) -> Judge | None:
    """Who can judge this base's pictures: the built-in one its own; others a CLIP ViT-B/32, with a DINO ViT-S/16 if it
    is there too, from the Hub's cache on this machine. None if that has none: nothing is fetched unasked."""
    if base_kind == "tiny":
        return Judge()
    clip, dino = _cached(CLIPS), _cached(DINOS)
    return Judge(clip, dino) if clip else None


def _cached(hub_ids: Sequence[str]) -> Path | None:
    folders = (snapshot(hub_id) for hub_id in hub_ids)
    return next((folder for folder in folders if folder and list(folder.glob("model*.safetensors"))), None)


def _unit(features: Tensor | object) -> np.ndarray:
    features = features if isinstance(features, Tensor) else features.pooler_output  # transformers 5 wraps it
    return torch.nn.functional.normalize(features.float(), dim=-1).numpy()
