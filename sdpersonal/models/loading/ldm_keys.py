"""Map the weight names of diffusers and transformers to those in original Stable Diffusion checkpoints.

The layout is that of CompVis' latent-diffusion (`openaimodel.py`, `model.py`), Stability AI's generative-models and
open_clip; A1111, ComfyUI and Civitai call it a checkpoint. The mapping goes from diffusers' names to the original
ones, so that each weight of a model has exactly one key, and a missing one can be named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


@dataclass(frozen=True)
class CheckpointKey:
    """The location of a weight in a checkpoint: a tensor, or a third of a joint q, k, v tensor, maybe transposed."""

    key: str
    qkv_index: int | None = None
    is_transposed: bool = False


def unet_keys(unet: UNet2DConditionModel, prefix: str = "model.diffusion_model.") -> dict[str, CheckpointKey]:
    """Return the key of every weight of a UNet2DConditionModel of SD 1.x, 2.x or SDXL."""
    paths = unet_paths(unet)
    return {name: CheckpointKey(f"{prefix}{paths[path]}.{end}") for name, path, end in _split_names(unet)}


def vae_keys(vae: AutoencoderKL, prefix: str = "first_stage_model.") -> dict[str, CheckpointKey]:
    """Return the key of every weight of an AutoencoderKL."""
    levels = len(vae.config["block_out_channels"])
    return {name: CheckpointKey(f"{prefix}{_vae_path(path, levels)}.{end}") for name, path, end in _split_names(vae)}


def clip_keys(text: nn.Module, prefix: str) -> dict[str, CheckpointKey]:
    """Return the key of every weight of a CLIP text model in transformers' layout: SD 1.x, and SDXL's first encoder."""
    return {name: CheckpointKey(f"{prefix}{name.removeprefix('text_model.')}") for name in text.state_dict()}


def open_clip_keys(text: nn.Module, prefix: str) -> dict[str, CheckpointKey]:
    """Return the key of every weight of a CLIP text model in open_clip's layout: SD 2.x, and SDXL's second encoder."""
    return {name: _open_clip_key(name.removeprefix("text_model."), prefix) for name in text.state_dict()}


def unet_paths(unet: UNet2DConditionModel) -> dict[str, str]:
    """Map every module path of a UNet to the original: `down_blocks.0.resnets.0.conv1` to
    `input_blocks.1.0.in_layers.2`. kohya's files name the layers of an SDXL LoRA by the original paths.
    """
    blocks = dict(_unet_blocks(unet.config))
    return {path: _unet_path(path, blocks) for path, _ in unet.named_modules()}


def _unet_blocks(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (diffusers' path, original path) of resnets, transformers and resamplers.

    The original numbers them consecutively, diffusers by level.
    """
    yield from _UNET.items()
    levels = len(config["block_out_channels"])
    layers = config["layers_per_block"]
    layers = [layers] * levels if isinstance(layers, int) else list(layers)
    number = 1  # 0 is conv_in
    for level in range(levels):
        for layer in range(layers[level]):
            yield f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{number}.0"
            yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{number}.1"
            number += 1
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
        number += 1
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    number = -1
    for level in range(levels):
        for layer in range(layers[levels - 1 - level] + 1):
            number += 1
            yield f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{number}.0"
            yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{number}.1"
        place = 2 if "CrossAttn" in config["up_block_types"][level] else 1
        yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{number}.{place}.conv"


def _unet_path(path: str, blocks: dict[str, str]) -> str:
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        if block := blocks.get(".".join(parts[:length])):
            inside = ".".join(parts[length:])
            return ".".join(filter(None, [block, _RESNET.get(inside, inside)]))
    return path


def _vae_path(path: str, levels: int) -> str:
    path = re.sub(r"^(encoder)\.down_blocks\.(\d+)\.resnets", r"\1.down.\2.block", path)
    path = re.sub(r"^(encoder)\.down_blocks\.(\d+)\.downsamplers\.0", r"\1.down.\2.downsample", path)
    path = re.sub(  # the original's decoder numbers levels by resolution, diffusers in the order they run
        r"^decoder\.up_blocks\.(\d+)\.", lambda match: f"decoder.up.{levels - 1 - int(match[1])}.", path
    )
    path = path.replace(".upsamplers.0.", ".upsample.").replace("conv_norm_out", "norm_out")
    path = re.sub(r"^(decoder\.up\.\d+)\.resnets", r"\1.block", path).replace("conv_shortcut", "nin_shortcut")
    path = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", path)
    before, attention, inside = path.partition("mid_block.attentions.0.")
    return f"{before}mid.attn_1.{_VAE_ATTENTION[inside]}" if attention else path


def _open_clip_key(name: str, prefix: str) -> CheckpointKey:
    if name in _OPEN_CLIP:
        return CheckpointKey(prefix + _OPEN_CLIP[name], is_transposed=name.startswith("text_projection"))
    number, inside = name.removeprefix("encoder.layers.").split(".", 1)
    block = f"{prefix}transformer.resblocks.{number}."
    path, end = inside.rsplit(".", 1)
    if joint := re.fullmatch(r"self_attn\.([qkv])_proj", path):
        return CheckpointKey(f"{block}attn.in_proj_{end}", qkv_index="qkv".index(joint[1]))
    return CheckpointKey(f"{block}{_OPEN_CLIP_LAYER[path]}.{end}")


def _split_names(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Yield (name, module's path, "weight" or "bias") of a model's weights."""
    for name in model.state_dict():
        path, end = name.rsplit(".", 1)
        yield name, path, end
