"""Translate kohya's names of LoRA layers to the paths of the modules in diffusers.

kohya writes `_` for `.`, and for SDXL the block names of Stability AI's own code. The reverse needs no model:
few words hold a `_` themselves, and the numbering of blocks is that of the published UNets (two resnets a level).
Sources: kohya-ss sd-scripts `networks/lora.py`, `library/sdxl_model_util.py`.
"""

from __future__ import annotations

import re

from ...errors import UserError, printable

_COMPONENTS = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
}
_COMPOUNDS = (
    *("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "time_embedding", "add_embedding", "linear_1"),
    *("linear_2", "time_emb_proj", "conv_shortcut", "conv_in", "conv_out", "proj_in", "proj_out", "to_q", "to_k"),
    *("to_v", "to_out", "text_model", "text_projection", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
)
_WORD = re.compile(rf"(?:{'|'.join(_COMPOUNDS)}|[a-z]+\d*|\d+)(?=_|$)")
_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)_(\d+)(?:_(\d+))?_(.+)")
_STARTS = {
    "unet": ("down_blocks", "up_blocks", "mid_block", "time_embedding", "add_embedding", "conv_in", "conv_out"),
    "text_encoder": ("text_model",),
    "text_encoder_2": ("text_model", "text_projection"),
}
_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}


def module_path(name: str) -> tuple[str, str]:
    """Turn `lora_te_text_model_encoder_layers_0_mlp_fc1` into ("text_encoder", "text_model.encoder.layers.0.mlp.fc1").

    Raises UserError for a layer that is in no Stable Diffusion.
    """
    prefix, _, inside = re.sub(r"^lora_(unet|te[12]?)_", r"lora_\1 ", name).partition(" ")
    if prefix == "lora_unet":
        inside = _to_diffusers(inside)
    parts = _WORD.findall(inside)
    component = _COMPONENTS.get(prefix, "")
    if not parts or "_".join(parts) != inside or parts[0] not in _STARTS.get(component, ()):
        raise UserError(f"The LoRA's layer {printable(name)} is in no supported Stable Diffusion.")
    return component, ".".join(parts)


def _to_diffusers(name: str) -> str:
    """Rename a layer of the UNet with diffusers' block names, `_` between all parts."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match = _BLOCK.fullmatch(name)
    if not match:
        return name
    side, number, index, inside = match[1], int(match[2]), match[3], match[4]
    if side == "middle_block":
        inside = inside if index is None else f"{index}_{inside}"
        return f"mid_block_{'attentions_0' if number == 1 else f'resnets_{number // 2}'}_{_RESNET.get(inside, inside)}"
    level, layer = divmod(number - (side == "input_blocks"), 3)
    direction = "down" if side == "input_blocks" else "up"
    if inside in ("op", "conv"):
        return f"{direction}_blocks_{level}_{direction}samplers_0_conv"
    kind = "attentions" if index == "1" else "resnets"
    return f"{direction}_blocks_{level}_{kind}_{layer}_{_RESNET.get(inside, inside)}"
