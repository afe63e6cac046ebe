"""Photos as the loop reads them: their latents' posteriors, on the device; and which sample is which.

Each photo is encoded once per variant. Keeping mean and std, and drawing anew from them at every step, teaches exactly
what encoding anew would, without its cost (about 40 % of a LoRA step) and without decoding a JPEG in the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..bases import StableDiffusion
from ..photos import Photo
from .chance import generator_for, photo_at


@dataclass(frozen=True)
class Batch:
    """What one step of one process learns from."""

    latents: Tensor  # (B, C, h, w) fp32
    noise: Tensor  # (B, C, h, w) fp32
    t: Tensor  # (B,)
    captions: tuple[str, ...]  # B templates with {} for the token
    photos: tuple[str, ...]  # B names, for messages


class TrainingPhotos:
    """N photos in V variants (mirrored too, if asked), each with its own captions or the templates."""

    def __init__(self, base: StableDiffusion, photos: Sequence[Photo], templates: Sequence[str], seed: int, flip: bool):
        self._base, self._seed = base, seed
        self._captions = [photo.captions or tuple(templates) for photo in photos]
        self._names = [photo.name for photo in photos]
        squares = [photo.square() for photo in photos]
        variants = [[square, square[:, ::-1]] if flip else [square] for square in squares]
        posteriors = [base.encode(np.stack(views)) for views in variants]
        self._mean = torch.stack([one.mean for one in posteriors])  # (N, V, C, h, w)
        self._std = torch.stack([one.std for one in posteriors])

    def samples(self, indices: Sequence[int]) -> Batch:
        """The samples of these numbers, counted over the whole run and all processes."""
        latents, noises, times, captions, names = [], [], [], [], []
        for index in indices:
            chance = generator_for("sample", self._seed, index)
            photo = photo_at(index, len(self._names), self._seed)
            variant = int(torch.randint(self._mean.shape[1], (), generator=chance))
            shape = self._mean.shape[2:]
            latent = self._mean[photo, variant] + self._std[photo, variant] * self._put(
                torch.randn(shape, generator=chance)
            )
            latents.append(latent)
            noises.append(torch.randn(shape, generator=chance))
            times.append(torch.randint(len(self._base.schedule), (), generator=chance))
            choice = self._captions[photo]
            captions.append(choice[int(torch.randint(len(choice), (), generator=chance))])
            names.append(self._names[photo])
        return Batch(
            torch.stack(latents),
            self._put(torch.stack(noises)),
            self._put(torch.stack(times)),
            tuple(captions),
            tuple(names),
        )

    def _put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._base.device)
