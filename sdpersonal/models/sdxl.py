"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): two text encoders, and the size of the picture."""

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
    """What differs from Stable Diffusion 1.x and 2.x: encoders "clip_l" and "clip_g", and what `condition` gives.

    zero_empty: an empty prompt is zeros, not the encoding of no words; so the base was taught to draw without a prompt.
    """

    default_guidance = 5.0

    def __init__(self, *, zero_empty: bool = True, **parts):
        self.zero_empty = zero_empty
        super().__init__(**parts)
        self.vae.enable_slicing()  # decodes one picture at a time: in fp32 several of 1024x1024 do not fit most cards

    @property
    def max_clip_skip(self) -> int:
        return min(encoder.layers for encoder in self.encoders.values()) - 1  # without any it reads the last but one

    def _encode(
        self, layouts: Mapping[str, list[PromptChunk]], said: Sequence[bool], clip_skip: int = 1
    ) -> Conditioning:
        """As for every base. `added`: text_embeds (B, 1280), the second encoder's pooled text; `framed` adds time_ids
        (B, 6)."""
        self.offloader.to_device("text")
        states_l, _ = self.encoders["clip_l"].penultimate_hidden_states(layouts["clip_l"], clip_skip)  # (B, 77, 768)
        states_g, pooled = self.encoders["clip_g"].penultimate_hidden_states(
            layouts["clip_g"], clip_skip
        )  # (B, 77, 1280)
        states = torch.cat([states_l, states_g], dim=-1)  # (B, 77, 2048)
        if self.zero_empty:
            some = torch.tensor(said, device=states.device)
            states, pooled = states.where(some[:, None, None], 0.0), pooled.where(some[:, None], 0.0)
        return Conditioning(states, {"text_embeds": pooled})

    def with_size_conditioning(self, condition: Conditioning, framings: Sequence[SizeConditioning]) -> Conditioning:
        # fp32 whatever the base is: bf16 knows no 1023.
        ids = torch.tensor([one.numbers for one in framings], dtype=torch.float32, device=condition.states.device)
        return replace(condition, added=condition.added | {"time_ids": ids})

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
        last = self.encoders["clip_l"].model.config.num_hidden_layers - 1  # comes after the states that are read
        return LoraAdapters(models, naming, idle=[f"lora_te1_text_model_encoder_layers_{last}_"])
