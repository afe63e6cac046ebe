"""Parse kohya's and LyCORIS' names of a layer's tensors: `lora_unet_mid_block_..._to_q.lora_down.weight`, `.alpha`, ...

Text encoders are `lora_te_`, SDXL's `lora_te1_` and `lora_te2_`; SDXL's UNet has the original's names
(`lora_unet_input_blocks_4_1_...`), though some writers use diffusers'. kohya's own OFT says `oft_unet_`, and LyCORIS
without kohya's scripts calls the layers of any model `lycoris_...`. Sources: kohya-ss sd-scripts `networks/lora.py`,
`networks/oft.py`; LyCORIS `wrapper.py`; OneTrainer `modules/util/convert_lora_util.py`.
"""

from __future__ import annotations

import re

from ..layer_changes import SUFFIXES
from .detect_base import LayerPath
from .layers import text_name

_KEY = re.compile(
    r"(?:lora_(?P<component>unet|te|te1|te2)|lycoris|oft_unet)_(?P<flat>[A-Za-z0-9_]{1,240})\.(?P<piece>[A-Za-z0-9_.]{1,40})"
)
_TEXT = ("text_model_", "encoder_layers_")  # after `lycoris_`, which names no model
_PIECES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
_WRAPPERS = re.compile(r"^_*(?:module_)+|_orig_mod_")  # torch.compile's anywhere, data parallel training's in front


def parse_key(key: str) -> tuple[LayerPath, str, str] | None:
    """Parse a name to (layer, the tensor's name in `changes`, module path); None where it is not kohya's."""
    match = _KEY.fullmatch(key)
    if not match:
        return None
    piece = _PIECES.get(match["piece"], match["piece"])
    if piece not in SUFFIXES:
        return None
    flat = _WRAPPERS.sub("", _WRAPPERS.sub("", match["flat"]))
    component = match["component"] or ("text" if flat.startswith(_TEXT) else "unet")
    return LayerPath(component, flat if component == "unet" else text_name(flat), True), piece, ""
