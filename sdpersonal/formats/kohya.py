"""kohya's names for a LoRA's tensors: `lora_unet_mid_block_..._to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`.

Text encoders are `lora_te_`, SDXL's `lora_te1_` and `lora_te2_`; SDXL's UNet has the original's names
(`lora_unet_input_blocks_4_1_...`), though some writers use diffusers'. Sources: kohya-ss sd-scripts `networks/lora.py`;
OneTrainer `modules/util/convert_lora_util.py`.
"""

from __future__ import annotations

import re

from .kinds import Part
from .layers import text_name

_KEY = re.compile(
    r"lora_(?P<component>unet|te|te1|te2)_(?P<flat>[A-Za-z0-9_]{1,200})\."
    r"(?P<piece>lora_down\.weight|lora_up\.weight|lora_A\.weight|lora_B\.weight|alpha)"
)
_PIECES = {"lora_down.weight": "down", "lora_A.weight": "down", "lora_up.weight": "up", "lora_B.weight": "up"}


def parsed(key: str) -> tuple[Part, str, str] | None:
    """(layer, "down", "up" or "alpha", module path) that a tensor's name tells; None where it is not kohya's."""
    found = _KEY.fullmatch(key)
    if not found:
        return None
    flat = found["flat"] if found["component"] == "unet" else text_name(found["flat"])
    return Part(found["component"], flat), _PIECES.get(found["piece"], "alpha"), ""
