"""Stable Diffusion with random weights, in its real shapes: a step costs the same whatever the weights say.

python -m benchmarks.steps.geometry KIND FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdpersonal.models.loading import built_in_folder
from sdpersonal.models.loading.single_file import clip_tokenizer
from sdpersonal.models.sdxl import StableDiffusionXL
from sdpersonal.models.stable_diffusion import StableDiffusion
from sdpersonal.models.text_encoder import TextEncoder

_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False} | {
    "steps_offset": 1
}
_TOKENS = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
_CLIP_L = _TOKENS | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_CLIP_G = _TOKENS | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_UNETS = {
    "sd15": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
# For tests: the same blocks, half as deep and a tenth as wide, on text that is as wide as CLIP's.
_NARROW = {
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "sample_size": 16,
    "norm_num_groups": 8,
}
_UNETS["narrow"] = _UNETS["sd15"] | _NARROW
_UNETS["narrow-v"] = _UNETS["sd15"] | _NARROW | {"cross_attention_dim": 1024, "use_linear_projection": True}
_UNETS["narrow-sdxl"] = _UNETS["sdxl"] | {
    "block_out_channels": (32, 32, 64),
    "layers_per_block": 1,
    "sample_size": 16,
    "norm_num_groups": 8,
    "attention_head_dim": (2, 4, 8),
    "transformer_layers_per_block": (1, 1, 2),
}
KINDS = tuple(_UNETS)
_BASE_KINDS = {"tiny": "tiny", "sdxl": "sdxl", "narrow-sdxl": "sdxl", "narrow-v": "sd2"}


def build(kind: str, device: str) -> StableDiffusion:
    """That kind of base on a device, "meta" for its shapes alone: "tiny" and, with random weights, "sd15", "sdxl" and
    three for tests, "narrow", "narrow-v" (predicts the velocity, as 2.x) and "narrow-sdxl"."""
    with torch.device(device):
        unet, vae, texts = _built_in() if kind == "tiny" else _random(kind)
    tokenizer = _tokenizer(kind)
    parts = {
        "name": kind,
        "kind": _BASE_KINDS.get(kind, "sd1"),
        "version": "0" * 64,
        "unet": unet,
        "vae": vae,
        "encoders": {key: TextEncoder(tokenizer, text, key) for key, text in texts.items()},
        "scheduler": DDPMScheduler(**_SCHEDULE, prediction_type="v_prediction" if kind == "narrow-v" else "epsilon"),
    }
    return (StableDiffusionXL if _is_xl(kind) else StableDiffusion)(**parts)


def save(kind: str, folder: Path) -> None:
    """A folder in diffusers layout, fp32: 4.3 GB for "sd15", 14 GB for "sdxl"."""
    torch.manual_seed(0)
    build(kind, "cpu").save(folder)


def _is_xl(kind: str) -> bool:
    return kind.endswith("sdxl")


def _random(kind: str) -> tuple[nn.Module, nn.Module, dict[str, nn.Module]]:
    narrow, xl = kind.startswith("narrow"), _is_xl(kind)
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64) if narrow else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8 if narrow else 32,
        sample_size=1024 if xl else 512,
        scaling_factor=0.13025 if xl else 0.18215,
        force_upcast=xl,
    )
    clip_l, clip_g = _text_configs(kind)
    texts = {"clip_l": CLIPTextModel(CLIPTextConfig(**clip_l))}
    if xl:
        texts["clip_g"] = CLIPTextModelWithProjection(CLIPTextConfig(**clip_g))
    return UNet2DConditionModel(**_UNETS[kind]), vae, texts


def _text_configs(kind: str) -> tuple[dict, dict]:
    """Of CLIP-L and CLIP-G; narrow ones have few and narrow layers, but embeddings as wide as usual."""
    if not kind.startswith("narrow"):
        return _CLIP_L, _CLIP_G
    tokenizer = _tokenizer(kind)
    few = {"num_hidden_layers": 3 if _is_xl(kind) else 2, "vocab_size": len(tokenizer)}
    few |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "narrow-v":
        few |= {"hidden_size": 1024, "num_attention_heads": 16}
    thin = few | ({} if kind == "narrow" else {"intermediate_size": 256})
    return _CLIP_L | thin, _CLIP_G | thin


def _built_in() -> tuple[nn.Module, nn.Module, dict[str, nn.Module]]:
    folder = built_in_folder()
    text = CLIPTextConfig(**json.loads((folder / "text_encoder" / "config.json").read_text()))
    unet, vae = (
        model.from_config(json.loads((folder / name / "config.json").read_text()))
        for model, name in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
    )
    return unet, vae, {"clip_l": CLIPTextModel(text)}


def _tokenizer(kind: str):
    if kind == "tiny" or kind.startswith("narrow"):  # a small vocabulary
        return CLIPTokenizer.from_pretrained(built_in_folder() / "tokenizer")
    return clip_tokenizer()


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
