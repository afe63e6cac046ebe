"""Photos as the loop reads them: their latents' posteriors, on the device; and which sample is which.

Each photo is encoded once per variant. Keeping mean and std, and drawing anew from them at every step, teaches exactly
what encoding anew would, without its cost (about 40 % of a LoRA step) and without decoding a JPEG in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ..models import Conditioning, LatentDistribution, SizeConditioning, StableDiffusion
from ..photos.captions import shortened
from ..photos.loading import Photo
from ..prompts import printable
from .objective import diffusion_loss
from .rng import generator_for, photo_index


@dataclass(frozen=True)
class Batch:
    """What one step of one process learns from."""

    latents: Tensor  # (B, C, h, w) fp32
    noise: Tensor  # (B, C, h, w) fp32
    t: Tensor  # (B,)
    captions: tuple[str, ...]  # B templates with {} for the token, or sentences without
    photos: tuple[str, ...]  # B names, for messages
    indices: tuple[int, ...]  # B numbers of the samples, counted over the run
    size_conditioning: tuple[SizeConditioning, ...]  # B sizes and crops, which SDXL is told

    def parts(self, size: int) -> Iterator[Batch]:
        """The batch in pieces of at most `size` samples."""
        for first in range(0, len(self.t), size):
            yield Batch(*(getattr(self, field.name)[first : first + size] for field in fields(self)))


class LatentDataset:
    """Latents of N pictures in V variants, with the captions of each; what sample number i is, is computed.

    purpose: two sets with different ones draw different noise, times and orders from one seed.
    noise_offset: how much of a whole channel's noise is one number, so that brightness is learned too (Guttenberg
    2023, crosslabs.org/blog/diffusion-with-offset-noise).
    """

    def __init__(
        self,
        base: StableDiffusion,
        posteriors: Sequence[LatentDistribution],  # one a picture, each of V rows
        framings: Sequence[Sequence[SizeConditioning]],  # V a picture
        captions: Sequence[Sequence[str]],
        names: Sequence[str],
        seed: int,
        noise_offset: float = 0.0,
        purpose: str = "sample",
    ):
        self._base, self._seed, self._offset, self._purpose = base, seed, noise_offset, purpose
        self._framings, self._captions, self._names = framings, captions, names
        self._mean = torch.stack([one.mean for one in posteriors])  # (N, V, C, h, w)
        self._std = torch.stack([one.std for one in posteriors])

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self._names)

    @property
    def levels(self) -> int:
        """How many noise levels there are."""
        return len(self._base.schedule)

    def samples(self, indices: Sequence[int]) -> Batch:
        """The samples of these numbers, counted over the whole run and all processes."""
        latents, noises, times, captions, names, framings = [], [], [], [], [], []
        for index in indices:
            chance = generator_for(self._purpose, self._seed, index)
            photo = photo_index(index, len(self._names), self._seed)
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
            framings.append(self._framings[photo][variant])
            if self._offset:
                noises[-1] = noises[-1] + self._offset * torch.randn(shape[0], 1, 1, generator=chance)
        return Batch(
            torch.stack(latents),
            self._put(torch.stack(noises)),
            self._put(torch.stack(times)),
            tuple(captions),
            tuple(names),
            tuple(indices),
            tuple(framings),
        )

    def _put(self, tensor: Tensor) -> Tensor:
        device = self._base.device
        # Copied from pinned memory, the device need not be waited for.
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class PhotoDataset(LatentDataset):
    """Photos, mirrored too if asked, each with its own captions or the templates."""

    def __init__(
        self,
        base: StableDiffusion,
        photos: Sequence[Photo],
        templates: Sequence[str],
        seed: int,
        flip: bool,
        noise_offset: float = 0.0,
        purpose: str = "sample",
    ):
        views = [_crop_and_flip(photo, flip) for photo in photos]
        super().__init__(
            base,
            [base.encode(np.stack([square for square, _ in variants])) for variants in views],
            [[framing for _, framing in variants] for variants in views],
            [photo.captions or tuple(templates) for photo in photos],
            [photo.name for photo in photos],
            seed,
            noise_offset,
            purpose,
        )


def _crop_and_flip(photo: Photo, flip: bool) -> list[tuple[np.ndarray, SizeConditioning]]:
    """The square of a photo with its place in the photo; mirrored too, if asked."""
    square, (left, top), width = photo.square(), photo.crop, photo.pixels.shape[1]
    side = len(square)
    views = [(square, SizeConditioning(photo.original, (top, left), (side, side)))]
    if flip:
        views.append((square[:, ::-1], SizeConditioning(photo.original, (top, width - left - side), (side, side))))
    return views


CaptionPieces = Sequence[str | Mapping[str, Tensor]]
"""A caption as `condition` takes it."""


def fit_captions(
    base: StableDiffusion, readings: Sequence[Callable[[str], CaptionPieces]], photos: Sequence[Photo]
) -> tuple[tuple[Photo, ...], list[str]]:
    """The photos with captions that fit the text encoders, and a line about each photo whose caption was cut.

    readings: the ways in which a caption will be read, such as with the token's rows and with the class noun. A caption
    of more tokens than a base reads at once would otherwise end the training at the step that draws it.
    """

    def fits(caption: str) -> bool:
        with torch.no_grad():
            return all(
                _tokens(base, key, read(caption)) <= base.encoders[key].room
                for read in readings
                for key in base.encoders
            )

    fitted, notes = [], []
    for photo in photos:
        captions = tuple(shortened(caption, fits) for caption in photo.captions)
        for before, after in zip(photo.captions, captions, strict=True):
            if before != after:
                rest = f"after: {after[-60:]}" if before.startswith(after) else f"before: {after[:60]}"
                notes.append(f"  {photo.name}: its caption is too long for this base and is cut {printable(rest)}")
        fitted.append(replace(photo, captions=captions))
    return tuple(fitted), notes


def _tokens(base: StableDiffusion, key: str, pieces: CaptionPieces) -> int:
    """Positions that a caption takes in one text encoder, without start and end."""
    ids = base.encoders[key].ids
    return sum(len(ids(piece)) if isinstance(piece, str) else len(piece[key]) for piece in pieces)


def batch_loss(
    base: StableDiffusion, words: Callable[[str], CaptionPieces], batch: Batch, snr_gamma: float | None
) -> Tensor:
    """The objective for a batch, per sample: (B,). words: what a caption says, with the token's rows in it."""
    condition = _encode_captions(base, words, batch)
    return diffusion_loss(
        lambda noisy, t: base.predict(noisy, t, condition),
        base.schedule,
        batch.latents,
        batch.noise,
        batch.t,
        snr_gamma,
    )


def _encode_captions(base: StableDiffusion, words: Callable[[str], CaptionPieces], batch: Batch) -> Conditioning:
    """What the UNet reads for each sample. A caption that several have is encoded once: of four samples and eight
    templates that saves a sixth of the text encoder's work."""
    distinct = list(dict.fromkeys(batch.captions))
    places = torch.tensor([distinct.index(caption) for caption in batch.captions], device=base.device)
    return base.with_size_conditioning(
        base.encode_captions([words(caption) for caption in distinct])[places], batch.size_conditioning
    )
