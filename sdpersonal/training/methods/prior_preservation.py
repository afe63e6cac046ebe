"""Prior preservation (DreamBooth, Ruiz et al. 2022, section 3.3): the class stays as it was while the subject trains.

The prior comes from one of three sources: photos of the class, class images that the base model generated, or, with
neither, the base model's own prediction for the class prompt on the same noisy latents.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ...models import Conditioning, StableDiffusion
from ..dataset import Batch, LatentDataset
from ..objective import batch_loss, min_snr


class PriorLoss(Protocol):
    def loss(self, batch: Batch) -> Tensor:
        """Return the loss per sample, (B,), weighted by noise level like the subject's loss."""


class PredictedPrior:
    """Distills the unmodified base model: it needs no images and one more prediction a step."""

    def __init__(self, base: StableDiffusion, class_noun: str, snr_gamma: float | None, trains_text_encoder: bool):
        self._base, self._class_noun, self._snr_gamma = base, class_noun, snr_gamma
        self._trains_text_encoder = trains_text_encoder
        self._base_conditionings: dict[str, Conditioning] = {}

    def loss(self, batch: Batch) -> Tensor:
        base = self._base
        captions = [caption.replace("{}", self._class_noun) for caption in batch.captions]
        noisy = base.schedule.add_noise(batch.latents, batch.noise, batch.t)
        with base.adapters.disabled(), torch.no_grad():
            base_condition = base.with_size_conditioning(
                Conditioning.cat([self._base_conditioning(c) for c in captions]), batch.size_conditioning
            )
            target = base.predict(noisy, batch.t, base_condition)
        condition = (
            base.encode_captions([[c] for c in captions], batch.size_conditioning)
            if self._trains_text_encoder
            else base_condition
        )
        loss = (base.predict(noisy, batch.t, condition) - target).pow(2).flatten(1).mean(1)
        return loss if self._snr_gamma is None else loss * min_snr(base.schedule, batch.t, self._snr_gamma)

    def _base_conditioning(self, caption: str) -> Conditioning:
        if caption not in self._base_conditionings:
            self._base_conditionings[caption] = self._base.encode_captions([[caption]])
        return self._base_conditionings[caption]


class ClassImagePrior:
    """Trains on photos or generated images of the class beside the subject, one for one."""

    def __init__(self, base: StableDiffusion, class_noun: str, class_images: LatentDataset, snr_gamma: float | None):
        self._base, self._class_noun, self._snr_gamma = base, class_noun, snr_gamma
        self._class_images = class_images

    def loss(self, batch: Batch) -> Tensor:
        class_batch = self._class_images.batch(batch.indices)
        return batch_loss(
            self._base, lambda caption: [caption.replace("{}", self._class_noun)], class_batch, self._snr_gamma
        )
