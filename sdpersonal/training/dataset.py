"""Hold the training data: the photos' latent distributions, and the samples computed from them, all on the CPU.

Each photo is encoded once per variant. Storing mean and std, and sampling from them at every step, trains exactly as
encoding anew would, without its cost (about 40 % of a LoRA step) and without decoding a JPEG in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import printable
from ..models import LatentDistribution, SizeConditioning, StableDiffusion
from ..models.offload import placed_for_encoding
from ..photos.captions import shortened
from ..photos.loading import Photo
from .rng import generator_for, photo_index

CaptionPieces = Sequence[str | Mapping[str, Tensor]]
"""A caption as `encode_captions` takes it: text, and embeddings (n, width) for each text encoder."""

CaptionSplitter = Callable[[str], CaptionPieces]
"""Splits a caption with {} for the subject into pieces: `Method.caption_pieces`, or one that inserts a noun."""


@dataclass(frozen=True)
class Batch:
    """The samples of one forward pass in one process, on the CPU."""

    latents: Tensor  # (B, C, h, w) fp32
    noise: Tensor  # (B, C, h, w) fp32
    t: Tensor  # (B,)
    captions: tuple[str, ...]  # B captions, with or without {} for the token
    photos: tuple[str, ...]  # B file names, for messages
    indices: tuple[int, ...]  # B sample indices, counted over the run
    size_conditioning: tuple[SizeConditioning, ...]  # B sizes and crops, inputs of SDXL

    def split(self, size: int) -> Iterator[Batch]:
        """Split the batch into parts of at most `size` samples."""
        for first in range(0, len(self.t), size):
            yield Batch(*(getattr(self, field.name)[first : first + size] for field in fields(self)))


class LatentDataset:
    """Latents of N images in V variants, with the captions of each; sample i is computed from the seed and i.

    purpose: two datasets with different ones get different noise, timesteps and variants from one seed.
    noise_offset: scale of a random constant added to each channel's noise, which trains brightness (Guttenberg 2023,
    crosslabs.org/blog/diffusion-with-offset-noise).
    """

    def __init__(
        self,
        base: StableDiffusion,
        distributions: Sequence[LatentDistribution],  # one per image, each with V rows
        size_conditioning: Sequence[Sequence[SizeConditioning]],  # V per image
        captions: Sequence[Sequence[str]],
        names: Sequence[str],
        seed: int,
        noise_offset: float = 0.0,
        purpose: str = "sample",
    ):
        self._base, self._seed, self._noise_offset, self._purpose = base, seed, noise_offset, purpose
        self._size_conditioning, self._captions, self._names = size_conditioning, captions, names
        self._mean = torch.stack([distribution.mean.cpu() for distribution in distributions])  # (N, V, C, h, w)
        self._std = torch.stack([distribution.std.cpu() for distribution in distributions])

    @property
    def count(self) -> int:
        """Return the number of images."""
        return len(self._names)

    @property
    def levels(self) -> int:
        """Return the number of noise levels."""
        return len(self._base.schedule)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the samples with these indices, counted over the whole run and all processes."""
        latents, noises, timesteps, captions, names, size_conditioning = [], [], [], [], [], []
        for index in indices:
            generator = generator_for(self._purpose, self._seed, index)
            photo = photo_index(index, len(self._names), self._seed)
            variant = int(torch.randint(self._mean.shape[1], (), generator=generator))
            shape = self._mean.shape[2:]
            epsilon = torch.randn(shape, generator=generator)
            latents.append(self._mean[photo, variant] + self._std[photo, variant] * epsilon)
            noises.append(torch.randn(shape, generator=generator))
            timesteps.append(torch.randint(len(self._base.schedule), (), generator=generator))
            photo_captions = self._captions[photo]
            captions.append(photo_captions[int(torch.randint(len(photo_captions), (), generator=generator))])
            names.append(self._names[photo])
            size_conditioning.append(self._size_conditioning[photo][variant])
            if self._noise_offset:
                noises[-1] = noises[-1] + self._noise_offset * torch.randn(shape[0], 1, 1, generator=generator)
        return Batch(
            torch.stack(latents),
            torch.stack(noises),
            torch.stack(timesteps),
            tuple(captions),
            tuple(names),
            tuple(indices),
            tuple(size_conditioning),
        )


class PhotoDataset(LatentDataset):
    """A dataset of photos, mirrored too if `flip`, each with its own captions or the templates."""

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
        height, width = views[0][0][0].shape[:2]
        with base.exclusive(), placed_for_encoding(base, (width, height)):
            distributions = [_encode(base, [square for square, _ in variants]) for variants in views]
        super().__init__(
            base,
            distributions,
            [[size_conditioning for _, size_conditioning in variants] for variants in views],
            [photo.captions or tuple(templates) for photo in photos],
            [photo.name for photo in photos],
            seed,
            noise_offset,
            purpose,
        )


def _encode(base: StableDiffusion, squares: Sequence[np.ndarray]) -> LatentDistribution:
    """Encode the variants of a photo; on a card one at a time, as its memory is planned."""
    size = 1 if base.device.type == "cuda" else len(squares)
    parts = [base.encode(np.stack(squares[first : first + size])) for first in range(0, len(squares), size)]
    return LatentDistribution(torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts]))


def _crop_and_flip(photo: Photo, flip: bool) -> list[tuple[np.ndarray, SizeConditioning]]:
    """Return the square crop of a photo with its size conditioning; if `flip`, the mirrored one too."""
    square, (left, top), width = photo.square(), photo.crop, photo.pixels.shape[1]
    side = len(square)
    views = [(square, SizeConditioning(photo.original_size, (top, left), (side, side)))]
    if flip:
        views.append((square[:, ::-1], SizeConditioning(photo.original_size, (top, width - left - side), (side, side))))
    return views


def fit_captions(
    base: StableDiffusion, splitters: Sequence[CaptionSplitter], photos: Sequence[Photo]
) -> tuple[tuple[Photo, ...], list[str]]:
    """Cut captions to fit the text encoders; return the photos, and a line about each caption that was cut.

    splitters: the ways in which a caption will be encoded, such as with the token's embeddings and with the class noun.
    A caption with too many tokens would otherwise end the training at the step that samples it.
    """

    def fits(caption: str) -> bool:
        with torch.no_grad():
            return all(
                _count_tokens(base, key, split(caption)) <= base.encoders[key].capacity
                for split in splitters
                for key in base.encoders
            )

    fitted, notes = [], []
    for photo in photos:
        captions = tuple(shortened(caption, fits) for caption in photo.captions)
        for before, after in zip(photo.captions, captions, strict=True):
            if before != after:
                excerpt = f"after: {after[-60:]}" if before.startswith(after) else f"before: {after[:60]}"
                notes.append(f"  {photo.name}: its caption is too long for this base and is cut {printable(excerpt)}")
        fitted.append(replace(photo, captions=captions))
    return tuple(fitted), notes


def _count_tokens(base: StableDiffusion, key: str, pieces: CaptionPieces) -> int:
    """Count the tokens of a caption in one text encoder, without start and end."""
    ids = base.encoders[key].ids
    return sum(len(ids(piece)) if isinstance(piece, str) else len(piece[key]) for piece in pieces)
