"""Stable Diffusion 1.x and 2.x as training and drawing see it (Rombach et al. 2022, arXiv 2112.10752)."""

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
    """A piece of a prompt with its emphasis."""

    piece: str | Vectors
    weight: float = 1.0


@dataclass(frozen=True)
class Conditioning:
    """What the UNet reads besides the noisy latents; `added` is SDXL's pooled text and sizes."""

    states: Tensor  # (B, 77, d), or several contexts after each other
    added: dict[str, Tensor] = field(default_factory=dict)  # each (B, ...)

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return Conditioning(self.states[rows], {key: value[rows] for key, value in self.added.items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        added = {key: torch.cat([part.added[key] for part in parts]) for key in parts[0].added}
        return Conditioning(torch.cat([part.states for part in parts]), added)


@dataclass(frozen=True)
class SizeConditioning:
    """How a picture came to its size, in pixels, each (height, width) or (top, left): SDXL's micro-conditioning
    (Podell et al. 2023, arXiv 2307.01952, section 2.2). It learned from small and cropped pictures knowing that they
    were, so a picture is asked for as `whole`, and a photo that was enlarged or cut must say so."""

    original: tuple[int, int]  # before it was resized
    crop: tuple[int, int]  # where the target begins in the resized picture
    target: tuple[int, int]

    @staticmethod
    def whole(height: int, width: int) -> SizeConditioning:
        return SizeConditioning((height, width), (0, 0), (height, width))

    @property
    def numbers(self) -> tuple[int, ...]:
        return (*self.original, *self.crop, *self.target)


@dataclass(frozen=True)
class LatentDistribution:
    """The autoencoder's answer for some pictures, scaled for the UNet: mean and std (B, C, h, w), fp32."""

    mean: Tensor
    std: Tensor


class StableDiffusion:
    """A frozen model: text encoder, UNet and autoencoder, with a LoRA slot beside every layer of UNet and encoder.

    name: as the user asked for it; kind: "tiny", "sd1", "sd2" or "sdxl", which concepts must match; version: sha256
    over its UNet's file or its single file, so that a picture's recipe says exactly which weights drew it; note: what
    the user should know of how it was loaded; checker: what its pictures pass before they are shown, and what to say
    of it.
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
        self.safety_checker, self.safety = checker
        self.name, self.kind, self.version, self.note = name, kind, version, note
        self.unet, self.vae, self.encoders = unet, vae, encoders
        self.scheduler_config = dict(scheduler.config)
        self.adapters = self._adapters()
        text = nn.ModuleList(encoder.model for encoder in encoders.values())
        self.offloader = Offloader(text, unet, vae, unet.conv_in.weight.device)
        self.lock = threading.RLock()  # one drawing on the device at a time; slots and hooks are the model's own state
        self.schedule = NoiseSchedule(
            scheduler.alphas_cumprod.float().to(self.device), scheduler.config.prediction_type
        )
        for model in (unet, vae, *(encoder.model for encoder in encoders.values())):
            model.requires_grad_(False).eval()
        use_frozen_convs(unet)

    @property
    def device(self) -> torch.device:
        """Where it computes, wherever its models wait."""
        return self.offloader.device

    @property
    def dtype(self) -> torch.dtype:
        # diffusers' own `dtype` walks through every module: 0.6 ms in the built-in base, ten times a step.
        return self.unet.conv_in.weight.dtype

    @property
    def parameters(self) -> int:
        """How many numbers it has learned, over all its models."""
        return sum(one.numel() for model in self.modules().values() for one in model.parameters())

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures it was trained on."""
        return int(self.unet.config.sample_size) * self.vae_scale_factor

    @property
    def guidance(self) -> float:
        """Classifier-free guidance that suits it."""
        return 3.0 if self.kind == "tiny" else self.default_guidance

    @property
    def rescale(self) -> float:
        """How much of guidance's contrast to take back: most where it was trained to begin from noise alone, which
        guidance then overexposes (Lin et al. 2023, arXiv 2305.08891, section 3.4)."""
        alone = self.scheduler_config.get("rescale_betas_zero_snr")
        return 0.7 if alone and self.kind != "tiny" else 0.0  # tiny's guidance is low

    @property
    def widths(self) -> dict[str, int]:
        """Width of the vectors that each text encoder takes."""
        return {key: encoder.width for key, encoder in self.encoders.items()}

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture of that size."""
        return self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    def encode_captions(
        self, prompts: Sequence[Sequence[str | Vectors]], framings: Sequence[SizeConditioning] | None = None
    ) -> Conditioning:
        """Captions, each as pieces of text and concepts' vectors, to what the UNet reads.

        framings: one for each caption, read by SDXL alone; None: whole pictures of the base's own resolution. Raises
        UserError if a caption is too long.
        """
        layouts = {
            key: [encoder.layout([_for_encoder(key, piece) for piece in prompt]) for prompt in prompts]
            for key, encoder in self.encoders.items()
        }
        said = [any(_has_words(piece) for piece in prompt) for prompt in prompts]
        return self.with_size_conditioning(self._encode(layouts, said), framings or self._full_size(len(prompts)))

    def read(
        self,
        prompt: Sequence[Segment | Break],
        framing: SizeConditioning | None = None,
        chunks: int = 1,
        clip_skip: int = 1,
    ) -> Conditioning:
        """A prompt of any length with emphasis, at least `chunks` contexts long: states (1, 77 chunks, d).

        The pooled text is the first chunk's, as A1111 has it. clip_skip: A1111's number, from 1 (which skips none) to
        `max_clip_skip`.
        """
        laid = {key: self._chunks(key, prompt) for key in self.encoders}
        count = max(chunks, *map(len, laid.values()))
        for key, encoder in self.encoders.items():
            laid[key] += [encoder.padded(PromptChunk()) for _ in range(count - len(laid[key]))]
        said = any(_has_words(spoken.piece) for spoken in prompt if not isinstance(spoken, Break))
        parts = [self._encode({key: [some[i]] for key, some in laid.items()}, [said], clip_skip) for i in range(count)]
        whole = replace(parts[0], states=torch.cat([part.states for part in parts], dim=1))
        return self.with_size_conditioning(whole, [framing] if framing else self._full_size(1))

    def chunks(self, prompt: Sequence[Segment | Break]) -> int:
        """How many contexts a prompt takes."""
        return max(len(self._chunks(key, prompt)) for key in self.encoders)

    def _chunks(self, key: str, prompt: Sequence[Segment | Break]) -> list[PromptChunk]:
        spans = [
            one if isinstance(one, Break) else EncoderSegment(_for_encoder(key, one.piece), one.weight)
            for one in prompt
        ]
        return self.encoders[key].chunks(spans)

    @property
    def max_clip_skip(self) -> int:
        """The largest `clip_skip` that still leaves a layer of the text encoder."""
        return self.encoders["clip_l"].layers

    def _encode(
        self, layouts: Mapping[str, list[PromptChunk]], said: Sequence[bool], clip_skip: int = 1
    ) -> Conditioning:
        """One context of each of B prompts. said: whether there is a word in it."""
        self.offloader.to_device("text")
        ((key, laid),) = layouts.items()
        return Conditioning(self.encoders[key].states(laid, clip_skip))

    def _full_size(self, count: int) -> list[SizeConditioning]:
        return [SizeConditioning.whole(self.resolution, self.resolution)] * count

    def with_size_conditioning(self, condition: Conditioning, framings: Sequence[SizeConditioning]) -> Conditioning:
        """The same prompts for pictures of other framings: what to do with a condition that was kept."""
        return condition

    def predict(self, noisy: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """The UNet's output for noisy latents (B, C, h, w) at timesteps t (B,), in fp32. Only its input is cast."""
        self.offloader.to_device("unet")
        states, added = condition.states.to(self.dtype), condition.added or None
        return self.unet(noisy.to(self.dtype), t, states, added_cond_kwargs=added).sample.float()

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> LatentDistribution:
        """Pictures uint8 (B, H, W, 3) to their posterior."""
        self.offloader.to_device("vae")
        x = torch.from_numpy(pixels).to(self.device, self.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, H, W)
        answer = self.vae.encode(x).latent_dist
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        return LatentDistribution((answer.mean.float() - shift) * scale, answer.std.float() * scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents (B, C, h, w) to pictures uint8 (B, H, W, 3)."""
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        self.offloader.to_device("vae")
        x = self.vae.decode((latents / scale + shift).to(self.vae.dtype)).sample.float()  # (B, 3, H, W)
        if not torch.isfinite(x).all():
            raise UserError("The picture came out as NaN.", "Lower the strengths of the concepts, or the guidance.")
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def sampler(self, scheduler: Scheduler | None = None) -> SchedulerMixin:
        """Build a fresh scheduler with no memory of other images; None: the default."""
        return make_scheduler(self.scheduler_config, scheduler)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """The device to oneself, nothing recorded for gradients."""
        with self.lock, torch.no_grad():
            yield

    def enable_gradient_checkpointing(self, every: int) -> None:
        """Keep less for the backward pass: every n-th block of the UNet is computed twice. 1: all; 0: none.

        All of them cost one more forward pass (Chen et al. 2016, arXiv 1604.06174). Loss and gradients stay the same.
        """
        checkpoint_blocks(self.unet, every)

    def save(self, folder: Path) -> None:
        """Write it as a folder in diffusers layout, without what the slots hold. Raises DiskFull, UserError."""
        save_diffusers_folder(self, folder)

    def _adapters(self) -> LoraAdapters:
        models = {"lora_unet": self.unet, "lora_te": self.encoders["clip_l"].model}
        return LoraAdapters(models, naming={"lora_te": text_encoder_path})

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vae": self.vae} | {key: one.model for key, one in self.encoders.items()}


def _for_encoder(key: str, piece: str | Vectors) -> Piece:
    """The piece as one encoder reads it: of a concept's vectors, its own."""
    return piece if isinstance(piece, str) else piece[key]


def _has_words(piece: str | Vectors) -> bool:
    return bool(piece.strip()) if isinstance(piece, str) else True


def text_encoder_path(path: str) -> str:
    """A module of a CLIP text model as its files name it; transformers dropped the outer `text_model` in version 5."""
    return path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"
