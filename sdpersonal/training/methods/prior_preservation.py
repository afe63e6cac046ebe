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
from ..loss_inputs import CaptionTokenizer, LossInputs
from ..objective import batch_loss, encode_captions, min_snr
from .token_embedding import insert_noun


class PriorLoss(Protocol):
    def inputs(self, batch: Batch) -> LossInputs:
        """Return what the loss beside a batch is computed from, on the CPU."""

    def loss(self, inputs: LossInputs) -> Tensor:
        """Return the loss per sample, (B,), weighted by noise level like the subject's loss."""


class PredictedPrior:
    """Distills the unmodified base model: it needs no images and one more prediction a step."""

    def __init__(self, base: StableDiffusion, class_noun: str, snr_gamma: float | None, trains_text_encoder: bool):
        self._base, self._snr_gamma, self._trains_text_encoder = base, snr_gamma, trains_text_encoder
        self._tokenizer = CaptionTokenizer(base, insert_noun(class_noun))
        self._base_conditionings: dict[bytes, Conditioning] = {}  # by tokens

    def inputs(self, batch: Batch) -> LossInputs:
        return self._tokenizer.inputs(batch)

    def loss(self, inputs: LossInputs) -> Tensor:
        base = self._base
        noisy = base.schedule.add_noise(inputs.latents, inputs.noise, inputs.t)
        with base.adapters.disabled(), torch.no_grad():
            base_condition = self._encode_unmodified(inputs)
            target = base.predict(noisy, inputs.t, base_condition)
        condition = encode_captions(base, {}, inputs) if self._trains_text_encoder else base_condition
        loss = (base.predict(noisy, inputs.t, condition) - target).pow(2).flatten(1).mean(1)
        return loss if self._snr_gamma is None else loss * min_snr(base.schedule, inputs.t, self._snr_gamma)

    def _encode_unmodified(self, inputs: LossInputs) -> Conditioning:
        """Encode the captions with the unmodified base: each once in a run, but on a card in each step, which is
        captured as a function of tensors."""
        if inputs.tokens.is_cuda:
            return encode_captions(self._base, {}, inputs)
        keys = [row.numpy().tobytes() for row in inputs.tokens]
        for key, row in zip(keys, inputs.tokens, strict=True):
            if key not in self._base_conditionings:
                self._base_conditionings[key] = self._base.encode_tokens(row[None], {})
        conditioning = Conditioning.cat([self._base_conditionings[key] for key in keys])[inputs.caption]
        return self._base.with_time_ids(conditioning, inputs.time_ids)


class ClassImagePrior:
    """Trains on photos or generated images of the class beside the subject, one for one."""

    def __init__(self, base: StableDiffusion, class_noun: str, class_images: LatentDataset, snr_gamma: float | None):
        self._base, self._snr_gamma, self._class_images = base, snr_gamma, class_images
        self._tokenizer = CaptionTokenizer(base, insert_noun(class_noun))

    def inputs(self, batch: Batch) -> LossInputs:
        return self._tokenizer.inputs(self._class_images.batch(batch.indices))

    def loss(self, inputs: LossInputs) -> Tensor:
        return batch_loss(self._base, {}, inputs, self._snr_gamma)
