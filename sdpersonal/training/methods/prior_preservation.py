"""Prior preservation (DreamBooth, Ruiz et al. 2022, section 3.3): the class stays as it was while the subject trains.

The prior comes from one of three sources: photos of the class, class images that the base model generated, or, with
neither, the base model's own prediction for the class prompt on the same noisy latents.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ...models import StableDiffusion
from ..dataset import Batch, CaptionSplitter, LatentDataset
from ..loss_inputs import CaptionTokenizer, LossInputs
from ..objective import batch_loss, encode_captions, min_snr


class PriorLoss(Protocol):
    def inputs(self, batch: Batch) -> LossInputs:
        """Return what the loss beside a batch is computed from, on the CPU."""

    def loss(self, inputs: LossInputs) -> Tensor:
        """Return the loss per sample, (B,), weighted by noise level like the subject's loss."""


class PredictedPrior:
    """Distills the unmodified base model: it needs no images and one more prediction a step."""

    def __init__(self, base: StableDiffusion, class_noun: str, snr_gamma: float | None, trains_text_encoder: bool):
        self._base, self._snr_gamma, self._trains_text_encoder = base, snr_gamma, trains_text_encoder
        self._tokenizer = CaptionTokenizer(base, _insert_noun(class_noun))

    def inputs(self, batch: Batch) -> LossInputs:
        return self._tokenizer.inputs(batch)

    def loss(self, inputs: LossInputs) -> Tensor:
        base = self._base
        noisy = base.schedule.add_noise(inputs.latents, inputs.noise, inputs.t)
        with base.adapters.disabled(), torch.no_grad():
            base_condition = encode_captions(base, {}, inputs)
            target = base.predict(noisy, inputs.t, base_condition)
        condition = encode_captions(base, {}, inputs) if self._trains_text_encoder else base_condition
        loss = (base.predict(noisy, inputs.t, condition) - target).pow(2).flatten(1).mean(1)
        return loss if self._snr_gamma is None else loss * min_snr(base.schedule, inputs.t, self._snr_gamma)


class ClassImagePrior:
    """Trains on photos or generated images of the class beside the subject, one for one."""

    def __init__(self, base: StableDiffusion, class_noun: str, class_images: LatentDataset, snr_gamma: float | None):
        self._base, self._snr_gamma, self._class_images = base, snr_gamma, class_images
        self._tokenizer = CaptionTokenizer(base, _insert_noun(class_noun))

    def inputs(self, batch: Batch) -> LossInputs:
        return self._tokenizer.inputs(self._class_images.batch(batch.indices))

    def loss(self, inputs: LossInputs) -> Tensor:
        return batch_loss(self._base, {}, inputs, self._snr_gamma)


def _insert_noun(class_noun: str) -> CaptionSplitter:
    return lambda caption: [caption.replace("{}", class_noun)]
