"""Stable Diffusion 1.x and 2.x for training and generation (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from ..config.scheduler_names import Scheduler
from ..errors import UserError
from ..prompts import Break
from .frozen_conv import use_frozen_convs
from .gradient_checkpointing import checkpoint_blocks
from .lora import LoraAdapters
from .offload import Offloader
from .safety_checker import NO_CHECKER, SafetyChecker
from .saving import save_diffusers_folder
from .schedule import NoiseSchedule
from .schedulers import make_scheduler
from .text_encoder import EncoderSegment, Piece, PromptChunk, TextEncoder

Vectors = Mapping[str, Tensor]
"""A concept's vectors for each text encoder of a base: "clip_l" -> (n, width)."""


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt, text or a concept's vectors, with its emphasis."""

    piece: str | Vectors
    weight: float = 1.0


@dataclass(frozen=True)
class Conditioning:
    """The UNet's conditioning: prompt embeddings and, in `added`, SDXL's pooled text and sizes (added_cond_kwargs)."""

    prompt_embeds: Tensor  # (B, 77, d), or several contexts concatenated along dim 1
    added_cond_kwargs: dict[str, Tensor] = field(default_factory=dict)  # values: (B, ...)

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return Conditioning(
            self.prompt_embeds[rows], {key: value[rows] for key, value in self.added_cond_kwargs.items()}
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        added = {key: torch.cat([part.added_cond_kwargs[key] for part in parts]) for key in parts[0].added_cond_kwargs}
        return Conditioning(torch.cat([part.prompt_embeds for part in parts]), added)


@dataclass(frozen=True)
class SizeConditioning:
    """SDXL's size conditioning (Podell et al. 2023, arXiv 2307.01952, section 2.2), in pixels: (height, width) or
    (top, left). SDXL was trained with the sizes and crops of its images, so generation conditions on `whole`, and
    training must pass how a photo was enlarged or cropped."""

    original: tuple[int, int]  # before resizing
    crop: tuple[int, int]  # where the target begins in the resized image
    target: tuple[int, int]

    @staticmethod
    def full(height: int, width: int) -> SizeConditioning:
        return SizeConditioning((height, width), (0, 0), (height, width))

    @property
    def time_ids(self) -> tuple[int, ...]:
        return (*self.original, *self.crop, *self.target)


@dataclass(frozen=True)
class LatentDistribution:
    """The autoencoder's posterior of a batch of images, scaled for the UNet: mean and std (B, C, h, w), fp32."""

    mean: Tensor
    std: Tensor


class StableDiffusion:
    """A frozen model: text encoder, UNet and autoencoder, with a LoRA adapter beside every layer of UNet and encoder.

    Args:
        name: as given by the user.
        kind: "tiny", "sd1", "sd2" or "sdxl", which concepts must match.
        version: sha256 over its UNet's file or its single file, so that a recipe identifies the exact weights.
        note: what the user should know about how it was loaded.
        checker: the safety checker for its images, and a note about it.
    """

    default_guidance = 7.5

    def __init__(
        self,
        *,
        name: str,
        kind: str,
        version: str,
        unet,
        vae,
        encoders: dict[str, TextEncoder],
        scheduler,
        note: str = "",
        checker: tuple[SafetyChecker | None, str] = (None, NO_CHECKER),
    ):
        self.safety_checker, self.safety_note = checker
        self.name, self.kind, self.version, self.note = name, kind, version, note
        self.unet, self.vae, self.encoders = unet, vae, encoders
        self.scheduler_config = dict(scheduler.config)
        self.adapters = self._adapters()
        text = nn.ModuleList(encoder.model for encoder in encoders.values())
        self.offloader = Offloader(text, unet, vae, unet.conv_in.weight.device)
        self.lock = threading.RLock()  # one generation at a time: adapters and hooks are state of the model
        self.schedule = NoiseSchedule(
            scheduler.alphas_cumprod.float().to(self.device), scheduler.config.prediction_type
        )
        for model in (unet, vae, *(encoder.model for encoder in encoders.values())):
            model.requires_grad_(False).eval()
        use_frozen_convs(unet)

    @property
    def device(self) -> torch.device:
        """The device that it computes on, even while its models are offloaded."""
        return self.offloader.device

    @property
    def dtype(self) -> torch.dtype:
        # diffusers' own `dtype` iterates over every module: 0.6 ms in the built-in base, ten times a step.
        return self.unet.conv_in.weight.dtype

    @property
    def num_parameters(self) -> int:
        """The number of parameters of all its models."""
        return sum(weight.numel() for model in self.modules().values() for weight in model.parameters())

    @property
    def vae_scale_factor(self) -> int:
        """The number of pixels per latent, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """The side in pixels of the images that it was trained on."""
        return int(self.unet.config.sample_size) * self.vae_scale_factor

    @property
    def guidance(self) -> float:
        """The default classifier-free guidance scale."""
        return 3.0 if self.kind == "tiny" else self.default_guidance

    @property
    def rescale(self) -> float:
        """The guidance-rescale factor (Lin et al. 2023, arXiv 2305.08891, section 3.4): 0.7 for models with zero
        terminal SNR, which over-expose under guidance; otherwise 0."""
        is_zero_snr = self.scheduler_config.get("rescale_betas_zero_snr")
        return 0.7 if is_zero_snr and self.kind != "tiny" else 0.0  # tiny's guidance scale is low

    @property
    def widths(self) -> dict[str, int]:
        """The width of each text encoder's token embeddings."""
        return {key: encoder.width for key, encoder in self.encoders.items()}

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return (C, h, w) of the latents of an image of that size."""
        return self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    def encode_captions(
        self, captions: Sequence[Sequence[str | Vectors]], size_conditioning: Sequence[SizeConditioning] | None = None
    ) -> Conditioning:
        """Encode captions, given as pieces of text and concepts' vectors.

        framings: the size conditioning of each caption, used by SDXL only; None: uncropped images of the base's own
        resolution. Raises UserError if a caption is too long.
        """
        layouts = {
            key: [encoder.make_chunk([_for_encoder(key, piece) for piece in prompt]) for prompt in captions]
            for key, encoder in self.encoders.items()
        }
        has_text = [any(_has_words(piece) for piece in prompt) for prompt in captions]
        return self.with_size_conditioning(
            self._encode(layouts, has_text), size_conditioning or self._full_size(len(captions))
        )

    def encode_prompt(
        self,
        prompt: Sequence[Segment | Break],
        size: SizeConditioning | None = None,
        min_chunks: int = 1,
        clip_skip: int = 1,
    ) -> Conditioning:
        """Encode a prompt of any length with emphasis, at least `chunks` contexts long: states (1, 77 chunks, d).

        The pooled text is the first chunk's, as in A1111. clip_skip: as in A1111, from 1 (skips no layer) to
        `max_clip_skip`.
        """
        layouts = {key: self._chunks(key, prompt) for key in self.encoders}
        count = max(min_chunks, *map(len, layouts.values()))
        for key, encoder in self.encoders.items():
            layouts[key] += [encoder.padded(PromptChunk()) for _ in range(count - len(layouts[key]))]
        nonempty = any(_has_words(segment.piece) for segment in prompt if not isinstance(segment, Break))
        parts = [
            self._encode({key: [chunk_list[i]] for key, chunk_list in layouts.items()}, [nonempty], clip_skip)
            for i in range(count)
        ]
        conditioning = replace(parts[0], prompt_embeds=torch.cat([part.prompt_embeds for part in parts], dim=1))
        return self.with_size_conditioning(conditioning, [size] if size else self._full_size(1))

    def num_chunks(self, prompt: Sequence[Segment | Break]) -> int:
        """Return how many contexts a prompt takes."""
        return max(len(self._chunks(key, prompt)) for key in self.encoders)

    def _chunks(self, key: str, prompt: Sequence[Segment | Break]) -> list[PromptChunk]:
        segments = [
            segment if isinstance(segment, Break) else EncoderSegment(_for_encoder(key, segment.piece), segment.weight)
            for segment in prompt
        ]
        return self.encoders[key].chunks(segments)

    @property
    def max_clip_skip(self) -> int:
        """The largest `clip_skip` that still leaves a layer of the text encoder."""
        return self.encoders["clip_l"].layers

    def _encode(
        self, layouts: Mapping[str, list[PromptChunk]], has_words: Sequence[bool], clip_skip: int = 1
    ) -> Conditioning:
        """Encode one context of each of B prompts. said: whether each prompt has any text or vectors."""
        self.offloader.to_device("text")
        ((key, prompt_chunks),) = layouts.items()
        return Conditioning(self.encoders[key].hidden_states(prompt_chunks, clip_skip))

    def _full_size(self, count: int) -> list[SizeConditioning]:
        return [SizeConditioning.full(self.resolution, self.resolution)] * count

    def with_size_conditioning(self, condition: Conditioning, framings: Sequence[SizeConditioning]) -> Conditioning:
        """Return the same prompts with other size conditioning; cached prompt embeddings can be reused this way."""
        return condition

    def predict(self, noisy: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """Return the UNet's output in fp32 for noisy latents (B, C, h, w) at timesteps t (B,). Only its input is cast
        to the UNet's dtype."""
        self.offloader.to_device("unet")
        states, added = condition.prompt_embeds.to(self.dtype), condition.added_cond_kwargs or None
        return self.unet(noisy.to(self.dtype), t, states, added_cond_kwargs=added).sample.float()

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> LatentDistribution:
        """Encode images, uint8 (B, H, W, 3), to the distribution of their latents."""
        self.offloader.to_device("vae")
        x = torch.from_numpy(pixels).to(self.device, self.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, H, W)
        distribution = self.vae.encode(x).latent_dist
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        return LatentDistribution((distribution.mean.float() - shift) * scale, distribution.std.float() * scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents (B, C, h, w) to images, uint8 (B, H, W, 3)."""
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        self.offloader.to_device("vae")
        x = self.vae.decode((latents / scale + shift).to(self.vae.dtype)).sample.float()  # (B, 3, H, W)
        if not torch.isfinite(x).all():
            raise UserError("The picture came out as NaN.", "Lower the strengths of the concepts, or the guidance.")
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def make_scheduler(self, scheduler: Scheduler | None = None) -> SchedulerMixin:
        """Build a fresh scheduler with no memory of other images; None: the default."""
        return make_scheduler(self.scheduler_config, scheduler)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the model lock and disable gradients."""
        with self.lock, torch.no_grad():
            yield

    def enable_gradient_checkpointing(self, every: int) -> None:
        """Checkpoint every n-th block of the UNet, which is then computed twice. 1: all; 0: none.

        Checkpointing all costs one more forward pass (Chen et al. 2016, arXiv 1604.06174). Loss and gradients stay the
        same.
        """
        checkpoint_blocks(self.unet, every)

    def save(self, folder: Path) -> None:
        """Save as a folder in diffusers layout, without the LoRA adapters. Raises DiskFull, UserError."""
        save_diffusers_folder(self, folder)

    def _adapters(self) -> LoraAdapters:
        models = {"lora_unet": self.unet, "lora_te": self.encoders["clip_l"].model}
        return LoraAdapters(models, naming={"lora_te": text_encoder_path})

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vae": self.vae} | {key: encoder.model for key, encoder in self.encoders.items()}


def _for_encoder(key: str, piece: str | Vectors) -> Piece:
    """Return a piece as one encoder reads it: text unchanged, or the concept's vectors for this encoder."""
    return piece if isinstance(piece, str) else piece[key]


def _has_words(piece: str | Vectors) -> bool:
    return bool(piece.strip()) if isinstance(piece, str) else True


def text_encoder_path(path: str) -> str:
    """Return a CLIP module's path as used in files; transformers 5 dropped the outer `text_model`."""
    return path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"
