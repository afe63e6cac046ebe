"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): two text encoders and size conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from .loading.ldm_keys import unet_paths
from .lora import LoraAdapters
from .stable_diffusion import Conditioning, SizeConditioning, StableDiffusion, text_encoder_path
from .text_encoder import PromptChunk


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: text encoders "clip_l" and "clip_g", and pooled text and sizes in the `Conditioning`.

    zero_empty: an empty prompt is zeros, not the encoding of no words, because the base was trained this way.
    """

    default_guidance = 5.0

    def __init__(self, *, zero_empty: bool = True, **parts):
        self.force_zeros_for_empty_prompt = zero_empty
        super().__init__(**parts)
        self.vae.enable_slicing()  # decodes one image at a time: in fp32 several of 1024x1024 do not fit most GPUs

    @property
    def max_clip_skip(self) -> int:
        return (
            min(encoder.layers for encoder in self.encoders.values()) - 1
        )  # without clip skip SDXL reads the last but one

    def _encode(
        self, layouts: Mapping[str, list[PromptChunk]], has_words: Sequence[bool], clip_skip: int = 1
    ) -> Conditioning:
        """Encode one context of each of B prompts. `added` has text_embeds (B, 1280), the second encoder's pooled text;
        `with_size_conditioning` adds time_ids (B, 6)."""
        self.offloader.to_device("text")
        states_l, _ = self.encoders["clip_l"].penultimate_hidden_states(layouts["clip_l"], clip_skip)  # (B, 77, 768)
        states_g, pooled = self.encoders["clip_g"].penultimate_hidden_states(
            layouts["clip_g"], clip_skip
        )  # (B, 77, 1280)
        states = torch.cat([states_l, states_g], dim=-1)  # (B, 77, 2048)
        if self.force_zeros_for_empty_prompt:
            has_text = torch.tensor(has_words, device=states.device)
            states, pooled = states.where(has_text[:, None, None], 0.0), pooled.where(has_text[:, None], 0.0)
        return Conditioning(states, {"text_embeds": pooled})

    def with_size_conditioning(self, condition: Conditioning, framings: Sequence[SizeConditioning]) -> Conditioning:
        # fp32 whatever the base's dtype: bf16 cannot represent 1023.
        ids = torch.tensor(
            [size.time_ids for size in framings], dtype=torch.float32, device=condition.prompt_embeds.device
        )
        return replace(condition, added_cond_kwargs=condition.added_cond_kwargs | {"time_ids": ids})

    def _adapters(self) -> LoraAdapters:
        models: dict[str, nn.Module] = {
            "lora_unet": self.unet,
            "lora_te1": self.encoders["clip_l"].model,
            "lora_te2": self.encoders["clip_g"].model,
        }
        naming = {
            "lora_unet": unet_paths(self.unet).__getitem__,
            "lora_te1": text_encoder_path,
            "lora_te2": text_encoder_path,
        }
        last = self.encoders["clip_l"].model.config.num_hidden_layers - 1  # comes after the hidden states that are used
        return LoraAdapters(models, naming, unused=[f"lora_te1_text_model_encoder_layers_{last}_"])
