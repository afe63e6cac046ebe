"""Stable Diffusion 1.x and 2.x as training and drawing see it (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from torch import Tensor, nn

from ..errors import PersonalError
from ..lora import Slots
from .schedule import Schedule
from .text import Piece, TextEncoder

Vectors = Mapping[str, Tensor]
"""A concept's vectors for each text encoder of a base: "clip_l" -> (n, width)."""


@dataclass(frozen=True)
class Conditioning:
    """What the UNet reads besides the noisy latents; `added` is SDXL's pooled text and sizes."""

    states: Tensor  # (B, 77, d)
    added: dict[str, Tensor] = field(default_factory=dict)  # each (B, ...)

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return Conditioning(self.states[rows], {key: value[rows] for key, value in self.added.items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        added = {key: torch.cat([part.added[key] for part in parts]) for key in parts[0].added}
        return Conditioning(torch.cat([part.states for part in parts]), added)


@dataclass(frozen=True)
class Posterior:
    """The autoencoder's answer for some pictures, scaled for the UNet: mean and std (B, C, h, w), fp32."""

    mean: Tensor
    std: Tensor


class StableDiffusion:
    """A frozen model: text encoder, UNet and autoencoder, with a LoRA slot beside every layer of the UNet.

    name: as the user asked for it; kind: "tiny", "sd1" or "sd2", which concepts must match; version: sha256 over its
    UNet, so that a picture's recipe says exactly which weights drew it.
    """

    def __init__(self, *, name: str, kind: str, version: str, unet, vae, encoders: dict[str, TextEncoder], scheduler):
        self.name, self.kind, self.version = name, kind, version
        self.unet, self.vae, self.encoders = unet, vae, encoders
        self._scheduler_config = dict(scheduler.config)
        self.slots = Slots({"lora_unet": unet})
        self.lock = threading.RLock()  # one drawing on the device at a time; slots and hooks are the model's own state
        self.schedule = Schedule(scheduler.alphas_cumprod.float().to(self.device), scheduler.config.prediction_type)
        for model in (unet, vae, *(encoder.model for encoder in encoders.values())):
            model.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def downscale(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures it was trained on."""
        return int(self.unet.config.sample_size) * self.downscale

    @property
    def guidance(self) -> float:
        """Classifier-free guidance that suits it."""
        return 3.0 if self.kind == "tiny" else 7.5

    @property
    def widths(self) -> dict[str, int]:
        """Width of the vectors that each text encoder takes."""
        return {key: encoder.width for key, encoder in self.encoders.items()}

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture of that size."""
        return self.unet.config.in_channels, height // self.downscale, width // self.downscale

    def condition(self, prompts: Sequence[Sequence[str | Vectors]]) -> Conditioning:
        """Prompts, each as pieces of text and concepts' vectors, to what the UNet reads."""
        (key, encoder), *_ = self.encoders.items()
        pieces: list[list[Piece]] = [[p if isinstance(p, str) else p[key] for p in prompt] for prompt in prompts]
        return Conditioning(encoder(pieces))

    def predict(self, noisy: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """The UNet's output for noisy latents (B, C, h, w) at timesteps t (B,), in fp32. Only its input is cast."""
        states = condition.states.to(self.dtype)
        added = {key: value.to(self.dtype) for key, value in condition.added.items()} or None
        return self.unet(noisy.to(self.dtype), t, states, added_cond_kwargs=added).sample.float()

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Posterior:
        """Pictures uint8 (B, H, W, 3) to their posterior."""
        x = torch.from_numpy(pixels).to(self.device, self.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, H, W)
        answer = self.vae.encode(x).latent_dist
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        return Posterior((answer.mean.float() - shift) * scale, answer.std.float() * scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents (B, C, h, w) to pictures uint8 (B, H, W, 3)."""
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        x = self.vae.decode((latents / scale + shift).to(self.vae.dtype)).sample.float()  # (B, 3, H, W)
        if not torch.isfinite(x).all():
            raise PersonalError("The picture came out as NaN.", "Lower the strengths of the concepts, or the guidance.")
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def sampler(self) -> SchedulerMixin:
        """A fresh sampler with no memory of other pictures.

        DPM++ 2M Karras (Lu et al. 2022) converges in 25 steps; it divides by the last step's signal, which a schedule
        with zero terminal SNR does not have, so such a base is drawn by DDIM as it was trained.
        """
        config = self._scheduler_config
        if config.get("rescale_betas_zero_snr"):
            return DDIMScheduler.from_config(config)
        return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", use_karras_sigmas=True)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """The device to oneself, nothing recorded for gradients."""
        with self.lock, torch.no_grad():
            yield

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vae": self.vae} | {key: one.model for key, one in self.encoders.items()}
