"""Translate kohya's names of LoRA layers to the paths of the modules in diffusers.

kohya writes `_` for `.`, and for SDXL the block names of Stability AI's own code. The reverse needs no model:
few words hold a `_` themselves, and `importers.layers` has the published UNets' numbering of blocks.
Source: kohya-ss sd-scripts `networks/lora.py`.
"""

from __future__ import annotations

import re

from ...errors import UserError, printable
from ..importers.layers import diffusers_name

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
_WORD = re.compile(rf"(?<![a-z\d])(?:{'|'.join(_COMPOUNDS)}|[a-z]+\d*|\d+)(?=_|$)")
_STARTS = {
    "unet": ("down_blocks", "up_blocks", "mid_block", "time_embedding", "add_embedding", "conv_in", "conv_out"),
    "text_encoder": ("text_model",),
    "text_encoder_2": ("text_model", "text_projection"),
}


def module_path(name: str) -> tuple[str, str]:
    """Turn `lora_te_text_model_encoder_layers_0_mlp_fc1` into ("text_encoder", "text_model.encoder.layers.0.mlp.fc1").

    Raises UserError for a layer that is in no Stable Diffusion.
    """
    prefix, _, inside = re.sub(r"^lora_(unet|te[12]?)_", r"lora_\1 ", name).partition(" ")
    if prefix == "lora_unet":
        inside = diffusers_name(inside)
    parts = _WORD.findall(inside)
    component = _COMPONENTS.get(prefix, "")
    if not parts or "_".join(parts) != inside or parts[0] not in _STARTS.get(component, ()):
        raise UserError(f"The LoRA's layer {printable(name)} is in no supported Stable Diffusion.")
    return component, ".".join(parts)
