"""Derive the configurations of a checkpoint's models from the shapes of its weights.

Original checkpoints have no configuration. Widths and depths follow from the shapes; the rest (heads, activations,
scaling of the latents) is the same for all models of a kind and is defined here, from CompVis' `v1-inference.yaml`,
Stability AI's `v2-inference*.yaml` and `sd_xl_base.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...config.base import BaseKind
from ...errors import UserError, printable

Shapes = Mapping[str, tuple[int, ...]]

CONTEXT_LENGTH = 77  # tokens, CLIP's context length
SCALING_FACTORS = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}  # makes the latents' standard deviation about 1
_LORA_MARKS = (
    *("lora_down", "lora_up", ".lora_A.", ".lora_B.", "_lora.down", "lora.down", "hada_w1", "lokr_w", "oft_", ".ia3_l"),
    *(".on_input", ".w_norm", ".set_weight", ".diff_b"),
)
_SUPPORTED = "sdpersonal works with Stable Diffusion 1.x, 2.x and XL"
_HEAD_DIM = 64  # channels per attention head, except in SD 1.x, which has 8 heads everywhere


KINDS_BY_WIDTH: dict[int, BaseKind] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
TINY_BY_WIDTH: dict[int, BaseKind] = {192: "tiny"}


def kind_by_width(width: object, name: str, kinds: Mapping[int, BaseKind] = KINDS_BY_WIDTH) -> BaseKind:
    """Return the kind of the base called `name` from its cross-attention width. Raises UserError if unknown."""
    if isinstance(width, int) and width in kinds:
        return kinds[width]
    raise UserError(
        f"--base {printable(name)} has text embeddings of width {printable(str(width))}; Stable Diffusion 1.x has 768, "
        "2.x 1024, XL 2048.",
        "Use another base.",
    )


def with_prefix_removed(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def unet_config(shapes: Shapes, kind: str, resolution: int) -> dict[str, object]:
    """Derive the config of a UNet2DConditionModel. Raises KeyError if it is no such UNet.

    shapes: without the prefix `model.diffusion_model.`.
    """
    levels = _unet_levels(shapes)
    widths = [width for width, _ in levels]
    depths = [depth for _, depth in levels]
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)]
    middle = _count_matches(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\.attn1\.to_q\.weight")
    config: dict[str, object] = {
        "sample_size": resolution // 8,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": _resnets_per_level(shapes),
        "transformer_layers_per_block": [depth or middle for depth in depths],
        "cross_attention_dim": context_width(shapes),
        "attention_head_dim": 8
        if kind == "sd1"
        else [width // _HEAD_DIM for width in widths],  # it is the number of heads
        "use_linear_projection": len(shapes["middle_block.1.proj_in.weight"]) == 2,
    }
    if kind == "sdxl":
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config


def context_width(shapes: Shapes) -> int:
    """Return the UNet's cross-attention width, which differs between the kinds. Raises KeyError."""
    return shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1]


def vae_config(shapes: Shapes, kind: str, resolution: int) -> dict[str, object]:
    """Derive the config of an AutoencoderKL. Raises KeyError if it is no such autoencoder.

    shapes: without the prefix `first_stage_model.`.
    """
    levels = _count_matches(shapes, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count_matches(shapes, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight"),
        "scaling_factor": SCALING_FACTORS[kind],
        "sample_size": resolution,
    }


def clip_config(shapes: Shapes) -> dict[str, object]:
    """Derive the CLIPTextConfig of a text model in transformers' layout, OpenAI's ViT-L. shapes: without its prefix."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count_matches(shapes, r"encoder\.layers\.(\d+)\.mlp\.fc1\.weight"),
        "num_attention_heads": width // _HEAD_DIM,
        "projection_dim": width,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": CONTEXT_LENGTH,
    }


def open_clip_config(shapes: Shapes, all_layers: bool) -> dict[str, object]:
    """Derive the CLIPTextConfig of a text model in open_clip's layout. shapes: without its prefix.

    all_layers: use all layers, as SDXL does. SD 2.x uses the last but one and omits the last of ViT-H's 24.
    """
    vocabulary, width = shapes["token_embedding.weight"]
    layers = _count_matches(shapes, r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": layers
        if all_layers or layers != 24
        else 23,  # a copy made by diffusers' script has 23 already
        "num_attention_heads": width // _HEAD_DIM,
        "projection_dim": shapes.get("text_projection", (width, width))[1],
        "hidden_act": "gelu",
        "max_position_embeddings": CONTEXT_LENGTH,
    }


def _unet_levels(shapes: Shapes) -> list[tuple[int, int]]:
    """Return (channels, transformer blocks) of each level of the down blocks."""
    levels, number = [], 1
    while f"input_blocks.{number}.0.in_layers.2.weight" in shapes:
        width = shapes[f"input_blocks.{number}.0.in_layers.2.weight"][0]
        blocks = rf"input_blocks\.{number}\.1\.transformer_blocks\.(\d+)\.attn1\.to_q\.weight"
        levels.append((width, _count_matches(shapes, blocks)))
        number += _resnets_per_level(shapes) + 1
    return levels


def _resnets_per_level(shapes: Shapes) -> int:
    number = 1
    while f"input_blocks.{number}.0.in_layers.2.weight" in shapes:
        number += 1
    return number - 1


def _count_matches(shapes: Shapes, pattern: str) -> int:
    return 1 + max((int(match[1]) for key in shapes if (match := re.fullmatch(pattern, key))), default=-1)


def refuse_unsupported(shapes: Shapes, name: str) -> None:
    """Raise UserError unless these weights may be a whole checkpoint of Stable Diffusion."""
    if reason := _unsupported_reason(shapes):
        description, hint = reason
        raise UserError(f"--base {printable(name)} is {description}.", hint)


def _unsupported_reason(shapes: Shapes) -> tuple[str, str] | None:
    def has(*marks: str) -> bool:
        return any(mark in key for key in shapes for mark in marks)

    if has(*_LORA_MARKS):
        return "a LoRA, not a base", "Import it into the library: sdpersonal concepts import FILE"
    if shapes.keys() <= {"emb_params", "emp_params", "clip_l", "clip_g"} or (
        len(shapes) == 1 and not has(".weight", ".scale") and all(len(shape) <= 2 for shape in shapes.values())
    ):
        return "an embedding, not a base", "Import it into the library: sdpersonal concepts import FILE"
    if has("joint_blocks."):
        return "Stable Diffusion 3", f"{_SUPPORTED}, such as --base sd15, sd21 or sdxl."
    if has("double_blocks.", "double_stream"):
        return "FLUX or one of its kind", f"{_SUPPORTED}, such as --base sd15, sd21 or sdxl."
    if has("control_model.", "controlnet_cond_embedding", "controlnet_down_blocks", "zero_convs."):
        return "a ControlNet, not a base", "Give --base the model that it was made for."
    if has("motion_modules.", "temporal_transformer"):
        return "a motion module, not a base", "Give --base the model that it was made for."
    if shapes.get("conditioner.embedders.0.model.ln_final.weight") == (1280,):
        return "the refiner of SDXL, which only finishes images", "Use the base: sdxl, or its file."
    if any(key.startswith("model.diffusion_model.input_blocks.") for key in shapes):
        return None
    if "input_blocks.0.0.weight" in shapes:
        return "a UNet alone, without text encoder and autoencoder", "Use a whole checkpoint."
    if "conv_in.weight" in shapes and has("down_blocks."):
        return "a part of a diffusers folder", "Give the folder that has model_index.json."
    if "decoder.conv_in.weight" in shapes or "first_stage_model.decoder.conv_in.weight" in shapes:
        return "an autoencoder (VAE), not a base", "Give it beside a base: --vae FILE"
    return (
        "not a supported checkpoint",
        f"{_SUPPORTED}. Give a whole checkpoint, a folder in diffusers layout or a Hub id.",
    )
