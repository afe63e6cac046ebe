"""Stable Diffusion 1.x and 2.x for training and generation (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import storage
from ..config.base import BaseKind
from ..config.scheduler_table import Scheduler
from ..errors import UserError
from ..prompts import Break
from .backends import to_device
from .fast_blocks import use_fast_blocks
from .frozen_conv import use_frozen_convs
from .loading.weights import silence_libraries
from .lora import LoraAdapters
from .offload import Offloader
from .safety_checker import NO_CHECKER, SafetyChecker
from .schedulers import DiffusersScheduler, NoiseSchedule, make_scheduler
from .text_encoder import PromptChunk, Segment, TextEncoder, TokenIds, Vectors, apply_emphasis, emphasis_of
from .unet_replay import UNetReplayer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler


@dataclass(frozen=True)
class Conditioning:
    """The UNet's conditioning: prompt embeddings, and SDXL's pooled text and sizes in `added_cond_kwargs`."""

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
    (top, left). SDXL was trained with the sizes and crops of its images, so generation conditions on `full`, and
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
        kind: BaseKind,
        version: str,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        encoders: dict[str, TextEncoder],
        scheduler: DDPMScheduler,
        note: str = "",
        checker: tuple[SafetyChecker | None, str] = (None, NO_CHECKER),
    ):
        self.safety_checker, self.safety_note = checker
        self.name = name
        self.kind: BaseKind = kind
        self.version, self.note = version, note
        self.unet, self.vae, self.encoders = unet, vae, encoders
        self.scheduler_config: dict[str, Any] = dict(scheduler.config)
        self.adapters = self._adapters()
        text = nn.ModuleList(encoder.model for encoder in encoders.values())
        self.offloader = Offloader(text, unet, vae, unet.conv_in.weight.device)
        if self.device.type == "cuda":
            self.adapters.use_buffers(self.device)
        self.replayer = UNetReplayer(self)
        self.lock = threading.RLock()  # one generation at a time: adapters and hooks are state of the model
        self.schedule = NoiseSchedule(
            scheduler.alphas_cumprod.float().to(self.device), scheduler.config["prediction_type"]
        )
        for model in (unet, vae, *(encoder.model for encoder in encoders.values())):
            model.requires_grad_(False).eval()
        use_frozen_convs(unet)
        use_fast_blocks(unet)

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
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def resolution(self) -> int:
        """The side in pixels of the images that it was trained on."""
        return int(self.unet.config["sample_size"]) * self.vae_scale_factor

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
        return self.unet.config["in_channels"], height // self.vae_scale_factor, width // self.vae_scale_factor

    def encode_captions(
        self, captions: Sequence[Sequence[str | Vectors]], size_conditioning: Sequence[SizeConditioning] | None = None
    ) -> Conditioning:
        """Encode captions, given as pieces of text and concepts' vectors.

        size_conditioning: of each caption, used by SDXL only; None: uncropped images of the base's own resolution.
        Raises UserError if a caption is too long.
        """
        prompts = [[Segment(piece) for piece in caption] for caption in captions]
        chunks = {key: [encoder.make_chunk(segments) for segments in prompts] for key, encoder in self.encoders.items()}
        return self.with_size_conditioning(
            self._encode(chunks, [_has_words(segments) for segments in prompts]),
            size_conditioning or self._full_size(len(captions)),
        )

    def tokenize_captions(self, captions: Sequence[Sequence[str | Vectors]]) -> Tensor:
        """Return captions as numbers for `encode_tokens`, (B, encoders, 2, 77) integers on the CPU.

        Vectors are counted from the first in the captions; captions with the same concept share one mapping. Raises
        UserError if a caption is too long.
        """
        prompts = [[Segment(piece) for piece in caption] for caption in captions]
        tokens = [
            torch.stack(encoder.tokenize([encoder.make_chunk(segments) for segments in prompts])[0], dim=1)
            for encoder in self.encoders.values()
        ]
        return torch.stack(tokens, dim=1)

    def encode_tokens(self, tokens: Tensor, vectors: Vectors) -> Conditioning:
        """Encode captions from `tokenize_captions`, on the device, as a function of tensors only, in one shape whatever
        they say; without size conditioning. vectors: of their concept."""
        by_encoder = {key: TokenIds(*tokens[:, i].unbind(1)) for i, key in enumerate(self.encoders)}
        has_words = by_encoder["clip_l"].ids[:, 1] != self.encoders["clip_l"].end_of_text
        return self._encode_tokens(by_encoder, vectors, has_words)

    def encode_prompt(
        self,
        segments: Sequence[Segment | Break],
        min_chunks: int = 1,
        clip_skip: int = 1,
    ) -> Conditioning:
        """Encode a prompt of any length with emphasis, at least `min_chunks` contexts long: (1, 77 chunks, d).

        The pooled text is the first chunk's, as in A1111. clip_skip: as in A1111, from 1 (skips no layer) to
        `max_clip_skip`.
        """
        chunks = {key: encoder.chunks(segments) for key, encoder in self.encoders.items()}
        count = max(min_chunks, *map(len, chunks.values()))
        for key, encoder in self.encoders.items():
            chunks[key] += [encoder.padded(PromptChunk()) for _ in range(count - len(chunks[key]))]
        has_words = [_has_words(segments)]
        parts = [self._encode({key: [chunks[key][i]] for key in chunks}, has_words, clip_skip) for i in range(count)]
        conditioning = replace(parts[0], prompt_embeds=torch.cat([part.prompt_embeds for part in parts], dim=1))
        return self.with_size_conditioning(conditioning, self._full_size(1))

    def num_chunks(self, segments: Sequence[Segment | Break]) -> int:
        """Return how many contexts a prompt takes."""
        return max(len(encoder.chunks(segments)) for encoder in self.encoders.values())

    @property
    def max_clip_skip(self) -> int:
        """The largest `clip_skip` that still leaves a layer of the text encoder."""
        return self.encoders["clip_l"].layers

    def _encode(
        self, chunks: Mapping[str, list[PromptChunk]], has_words: Sequence[bool], clip_skip: int = 1
    ) -> Conditioning:
        """Encode one context of each of B prompts. has_words: whether each prompt has any text or vectors."""
        tokens: dict[str, TokenIds] = {}
        vectors: dict[str, Tensor] = {}
        weights = {key: emphasis_of(chunks[key]) for key in self.encoders}
        for key, encoder in self.encoders.items():
            numbers, blocks = encoder.tokenize(chunks[key])
            tokens[key] = TokenIds(*(to_device(tensor, self.device) for tensor in numbers))
            if blocks is not None:
                vectors[key] = blocks
        emphasis = {key: to_device(tensor, self.device) for key, tensor in weights.items() if tensor is not None}
        has_words_on_device = to_device(torch.tensor(has_words), self.device)
        return self._encode_tokens(tokens, vectors, has_words_on_device, emphasis, clip_skip)

    def _encode_tokens(
        self,
        tokens: Mapping[str, TokenIds],
        vectors: Mapping[str, Tensor],
        has_words: Tensor,
        emphasis: Mapping[str, Tensor] = MappingProxyType({}),
        clip_skip: int = 1,
    ) -> Conditioning:
        """Encode prompts given as numbers for each text encoder, all on the device.

        has_words: (B,) booleans; emphasis: for some encoders, the weights of the tokens, (B, 77).
        """
        self.offloader.to_device("text")
        states = self.encoders["clip_l"].hidden_states(tokens["clip_l"], vectors.get("clip_l"), clip_skip)
        return Conditioning(apply_emphasis(states, emphasis.get("clip_l")))

    def _full_size(self, count: int) -> list[SizeConditioning]:
        return [SizeConditioning.full(self.resolution, self.resolution)] * count

    def with_size_conditioning(self, conditioning: Conditioning, sizes: Sequence[SizeConditioning]) -> Conditioning:
        """Return the same prompts with other size conditioning; cached prompt embeddings can be reused this way."""
        time_ids = torch.tensor([size.time_ids for size in sizes], dtype=torch.float32)
        return self.with_time_ids(conditioning, to_device(time_ids, self.device))

    def with_time_ids(self, conditioning: Conditioning, time_ids: Tensor) -> Conditioning:
        """Return the same prompts with size conditioning as numbers, (B, 6) fp32; only SDXL reads it."""
        return conditioning

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's output in fp32 for noisy latents (B, C, h, w) at timesteps t (B,). Only its input is cast
        to the UNet's dtype."""
        self.offloader.to_device("unet")
        prompt_embeds, added = conditioning.prompt_embeds.to(self.dtype), conditioning.added_cond_kwargs or None
        return self.unet(noisy.to(self.dtype), t, prompt_embeds, added_cond_kwargs=added).sample.float(
            memory_format=torch.contiguous_format
        )

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> LatentDistribution:
        """Encode images, uint8 (B, H, W, 3), to the distribution of their latents."""
        self.offloader.to_device("vae")
        x = torch.from_numpy(pixels).to(self.device, self.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, H, W)
        distribution = self.vae.encode(x).latent_dist
        scale, shift = self._latent_scale_and_shift()
        return LatentDistribution((distribution.mean.float() - shift) * scale, distribution.std.float() * scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents (B, C, h, w) to images, uint8 (B, H, W, 3)."""
        self.offloader.to_device("vae")
        x = self._decode(latents)
        if self.vae.dtype == torch.float16 and not torch.isfinite(x).all() and torch.isfinite(latents).all():
            self.vae.float()  # the autoencoders of some fine-tunes exceed fp16; this one stays in fp32
            x = self._decode(latents)
        if not torch.isfinite(x).all():
            raise UserError("The generated image is NaN.", "Lower the strengths of the concepts, or --guidance.")
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def _decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images from -1 to 1, fp32 (B, 3, H, W)."""
        scale, shift = self._latent_scale_and_shift()
        return self.vae.decode((latents / scale + shift).to(self.vae.dtype)).sample.float()

    def _latent_scale_and_shift(self) -> tuple[float, float]:
        return self.vae.config["scaling_factor"], self.vae.config["shift_factor"] or 0.0

    def make_scheduler(self, scheduler: Scheduler | None = None) -> DiffusersScheduler:
        """Build a fresh scheduler with no memory of other images; None: the default."""
        return make_scheduler(self.scheduler_config, scheduler)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the model lock and disable gradients."""
        with self.lock, torch.no_grad():
            yield

    def enable_gradient_checkpointing(self, every_nth: int) -> None:
        """Checkpoint every n-th transformer block and every n-th resnet block of the UNet. 1: all; 0: none.

        diffusers can checkpoint all blocks or none (Chen et al. 2016, arXiv 1604.06174). The cases between are the most
        useful: memory falls by the activations of the chosen blocks, and only these are computed twice. All of them
        cost one more forward pass. Loss and gradients stay the same.
        """
        for kind in (BasicTransformerBlock, ResnetBlock2D):
            blocks = [module for module in self.unet.modules() if isinstance(module, kind)]
            for number, block in enumerate(blocks):
                block.__dict__.pop("forward", None)  # an earlier call may have shadowed the class's method
                if every_nth and number % every_nth == 0:
                    block.__dict__["forward"] = partial(_recompute_in_backward, block.forward)

    def save(self, folder: Path) -> None:
        """Save as a folder in diffusers layout, each weight in its present precision, without the LoRA adapters.

        The folder appears complete or not at all. Raises DiskFull, or UserError if it exists already.
        """
        with storage.new_folder(folder) as staged, silence_libraries():
            try:
                self._pipeline().save_pretrained(staged, safe_serialization=True)
            except SafetensorError as error:  # it hides the OSError by which a full disk is recognised
                if "os error 28" in str(error):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
                raise

    def _pipeline(self) -> DiffusionPipeline:
        """Return diffusers' pipeline of its models."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        components = self._pipeline_components() | {"safety_checker": None, "feature_extractor": None}
        return StableDiffusionPipeline(**components, requires_safety_checker=False)

    def _pipeline_components(self) -> dict[str, Any]:
        components: dict[str, Any] = {"unet": self.unet, "vae": self.vae, "scheduler": self.make_scheduler()}
        for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
            if encoder := self.encoders.get(key):
                components |= {f"text_encoder{suffix}": encoder.model, f"tokenizer{suffix}": encoder.tokenizer}
        return components

    def _adapters(self) -> LoraAdapters:
        models: dict[str, nn.Module] = {"lora_unet": self.unet, "lora_te": self.encoders["clip_l"].model}
        return LoraAdapters(models, naming={"lora_te": text_encoder_path})

    def modules(self) -> dict[str, nn.Module]:
        """Return all its models: "unet", "vae", and the text encoders by their keys."""
        return {"unet": self.unet, "vae": self.vae, **{key: encoder.model for key, encoder in self.encoders.items()}}


def _has_words(segments: Sequence[Segment | Break]) -> bool:
    return any(isinstance(segment, Segment) and not segment.is_blank for segment in segments)


def text_encoder_path(path: str) -> str:
    """Return a CLIP module's path as used in files; transformers 5 dropped the outer `text_model`."""
    return path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"


def _recompute_in_backward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)  # no block is random
