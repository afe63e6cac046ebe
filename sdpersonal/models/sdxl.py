"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): two text encoders and size conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .loading.ldm_keys import unet_paths
from .lora import LoraAdapters
from .stable_diffusion import Conditioning, StableDiffusion, text_encoder_path
from .text_encoder import TokenIds, apply_emphasis

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: text encoders "clip_l" and "clip_g", and pooled text and sizes in the `Conditioning`.

    force_zeros_for_empty_prompt: an empty prompt is zeros, not the encoding of no words, because the base was trained
    this way.
    """

    default_guidance = 5.0

    def __init__(self, *, force_zeros_for_empty_prompt: bool = True, **components: Any):
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        super().__init__(**components)
        self.vae.enable_slicing()  # decodes one image at a time: in fp32 several of 1024x1024 do not fit most GPUs

    @property
    def max_clip_skip(self) -> int:
        # Without clip skip SDXL reads the last but one.
        return min(encoder.layers for encoder in self.encoders.values()) - 1

    def _encode_tokens(
        self,
        tokens: Mapping[str, TokenIds],
        vectors: Mapping[str, Tensor],
        has_words: Tensor,
        emphasis: Mapping[str, Tensor] = MappingProxyType({}),
        clip_skip: int = 1,
    ) -> Conditioning:
        """Encode prompts given as numbers for each text encoder, all on the device.

        `added_cond_kwargs` has text_embeds (B, 1280), the second encoder's pooled text; `with_time_ids` adds time_ids
        (B, 6).
        """
        self.offloader.to_device("text")
        (states_l, _), (states_g, pooled) = (
            self.encoders[key].penultimate_hidden_states(tokens[key], vectors.get(key), clip_skip)
            for key in ("clip_l", "clip_g")
        )
        if not pooled.shape[1]:
            raise TypeError("the second text encoder has no projection")
        states_l = apply_emphasis(states_l, emphasis.get("clip_l"))  # (B, 77, 768)
        states_g = apply_emphasis(states_g, emphasis.get("clip_g"))  # (B, 77, 1280)
        states = torch.cat([states_l, states_g], dim=-1)  # (B, 77, 2048)
        if self.force_zeros_for_empty_prompt:
            states, pooled = states.where(has_words[:, None, None], 0.0), pooled.where(has_words[:, None], 0.0)
        return Conditioning(states, {"text_embeds": pooled})

    def with_time_ids(self, conditioning: Conditioning, time_ids: Tensor) -> Conditioning:
        # fp32 whatever the base's dtype: bf16 cannot represent 1023.
        return replace(conditioning, added_cond_kwargs=conditioning.added_cond_kwargs | {"time_ids": time_ids})

    def _pipeline(self) -> DiffusionPipeline:
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        zeros = self.force_zeros_for_empty_prompt
        return StableDiffusionXLPipeline(**self._pipeline_components(), force_zeros_for_empty_prompt=zeros)

    def _adapters(self) -> LoraAdapters:
        models: dict[str, nn.Module] = {
            "lora_unet": self.unet,
            "lora_te1": self.encoders["clip_l"].model,
            "lora_te2": self.encoders["clip_g"].model,
        }
        naming: dict[str, Callable[[str], str]] = {
            "lora_unet": unet_paths(self.unet).__getitem__,
            "lora_te1": text_encoder_path,
            "lora_te2": text_encoder_path,
        }
        last = self.encoders["clip_l"].layers - 1  # comes after the hidden states that are used
        return LoraAdapters(models, naming, unused=[f"lora_te1_text_model_encoder_layers_{last}_"])
