"""Translate names of layers: diffusers' path of a module, the original's, and the name that a concept uses.

A concept names a layer as kohya's files do: `lora_unet_`, `lora_te_` (SDXL: `lora_te1_`, `lora_te2_`) and the module's
path with `_` for `.`. For SD 1.x and 2.x that is diffusers' path, for SDXL's UNet the original's (`input_blocks_4_1_`).
Sources: kohya-ss sd-scripts `networks/lora.py`, diffusers `loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

import functools
import itertools
import re

from ...config.base import BaseKind

_RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks_0_0",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
}
_MAX_PARTS = 8  # words between underscores of the longest name in a table below, down_blocks_0_resnets_0_time_emb_proj
_LAYERS = 2  # resnets a level on the way down, in every Stable Diffusion; one more on the way up


def unet_name(flat: str, base: BaseKind) -> str:
    """Return a UNet layer's name after `lora_unet_`, from either naming, its dots already `_`."""
    return _rename(flat, _to_original(3) if base == "sdxl" else _to_diffusers(4))


def diffusers_name(name: str) -> str:
    """Return diffusers' name of a UNet layer, `_` between all parts, from a concept's after `lora_unet_`."""
    return _rename(name, _all_to_diffusers())


def text_name(path: str) -> str:
    """Return a text encoder layer's name from its path; transformers 5 dropped the outer `text_model`."""
    flat = path.replace(".", "_")
    return flat if flat.startswith(("text_model_", "text_projection")) else f"text_model_{flat}"


@functools.cache
def _to_original(levels: int) -> dict[str, str]:
    """Map diffusers' names of the blocks of a UNet to the original's, which numbers them across levels."""
    table = dict(_ENDS)
    number = 1  # 0 is conv_in
    for level in range(levels):
        for layer in range(_LAYERS):
            table |= _block(f"down_blocks_{level}", layer, f"input_blocks_{number}")
            number += 1
        table[f"down_blocks_{level}_downsamplers_0_conv"] = f"input_blocks_{number}_0_op"
        number += level < levels - 1
    table |= _resnet("mid_block_resnets_0", "middle_block_0") | {"mid_block_attentions_0": "middle_block_1"}
    table |= _resnet("mid_block_resnets_1", "middle_block_2")
    for level in range(levels):
        for layer in range(_LAYERS + 1):
            number = level * (_LAYERS + 1) + layer
            table |= _block(f"up_blocks_{level}", layer, f"output_blocks_{number}")
        # It follows an attention, where the level has them: SD's first level up has none, nor has SDXL's last.
        index = 1 if (levels == 4 and level == 0) else 2
        table[f"up_blocks_{level}_upsamplers_0_conv"] = f"output_blocks_{number}_{index}_conv"
    return table


@functools.cache
def _to_diffusers(levels: int) -> dict[str, str]:
    return {original: name for name, original in _to_original(levels).items()}


@functools.cache
def _all_to_diffusers() -> dict[str, str]:
    """Join the tables of SD and SDXL, which differ only in the place of one upsampler."""
    return _to_diffusers(4) | _to_diffusers(3)


def _block(name: str, layer: int, original: str) -> dict[str, str]:
    return _resnet(f"{name}_resnets_{layer}", f"{original}_0") | {f"{name}_attentions_{layer}": f"{original}_1"}


def _resnet(name: str, original: str) -> dict[str, str]:
    return {f"{name}_{inside}": f"{original}_{renamed}" for inside, renamed in _RESNET.items()}


def _rename(flat: str, table: dict[str, str]) -> str:
    ends = [match.start() for match in itertools.islice(re.finditer("_", flat), _MAX_PARTS)]
    for end in (len(flat), *reversed(ends)):
        if renamed := table.get(flat[:end]):
            return renamed + flat[end:]
    return flat
