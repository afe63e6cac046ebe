"""Parse the names of a LoRA's tensors, as kohya, LyCORIS, diffusers, PEFT and ComfyUI write them.

    lora_unet_<flat>.lora_down.weight, .alpha                  kohya, LyCORIS; text encoders are `lora_te_`, SDXL's
                                                               `lora_te1_`, `lora_te2_`
    oft_unet_<flat>...                                         kohya's own OFT
    lycoris_<flat>...                                          LyCORIS without kohya's scripts, for any model
    unet.<path>.attn1.processor.to_q_lora.down.weight          diffusers until 0.22; `unet.` may be missing
    unet.<path>.to_q.lora.down.weight                          after that
    text_encoder.<path>.q_proj.lora_linear_layer.down.weight
    unet.<path>.to_q.lora_A.weight                             PEFT; alone it says `base_model.model.<path>`
    diffusion_model.<original path>.lora_up.weight             ComfyUI's own; its text encoders are
    text_encoders.clip_l.transformer.<path>.lora_up.weight     `clip_l`, `clip_g`, and `clip_h` of SD 2.x

In kohya's names SDXL's UNet has the original's blocks (`lora_unet_input_blocks_4_1_...`), though some writers use
diffusers'. Any tensor that `layer_changes` lists may take the place of a LoRA's. torch.compile puts `_orig_mod` into
paths, data parallel training `module` before them, PEFT an adapter's name behind `lora_A`: all of it is ignored.

Sources: kohya-ss sd-scripts `networks/lora.py`, `networks/oft.py`; LyCORIS `wrapper.py`; OneTrainer
`modules/util/convert_lora_util.py`; diffusers `utils/state_dict_utils.py`, `loaders/lora_base.py`; PEFT
`utils/other.py`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..layer_changes import SUFFIXES
from .detect_base import LayerPath
from .layers import text_name

_KEY = re.compile(
    r"(?:lora_(?P<component>unet|te|te1|te2)|lycoris|oft_unet)_(?P<flat>[A-Za-z0-9_]{1,240})\.(?P<piece>[A-Za-z0-9_.]{1,40})"
)
_FLAT_TEXT_START = ("text_model_", "encoder_layers_")  # after `lycoris_`, which names no model
_KOHYA_PIECES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
_FLAT_WRAP = re.compile(r"^_*(?:module_)+|_orig_mod_")  # torch.compile's anywhere, data parallel training's in front


class TensorKey(NamedTuple):
    """A parsed name: the layer, the tensor's name in `layer_changes` (or PEFT's), and the path of the layer's module.

    The path is what PEFT's patterns are matched with; it is empty for kohya's names.
    """

    layer: LayerPath
    tensor: str
    module: str = ""


def parse_key(key: str) -> TensorKey | None:
    """Parse a tensor's name in a file; None where it is of no known kind."""
    return parse_kohya_key(key) or parse_diffusers_key(key)


def parse_kohya_key(key: str) -> TensorKey | None:
    """Parse kohya's or LyCORIS' name; None where it is not theirs."""
    match = _KEY.fullmatch(key)
    if not match:
        return None
    piece = _KOHYA_PIECES.get(match["piece"], match["piece"])
    if piece not in SUFFIXES:
        return None
    flat = _FLAT_WRAP.sub("", _FLAT_WRAP.sub("", match["flat"]))
    component = match["component"] or ("text" if flat.startswith(_FLAT_TEXT_START) else "unet")
    return TensorKey(LayerPath(component, flat if component == "unet" else text_name(flat), True), piece)


# --- names with dots: diffusers, PEFT and ComfyUI ---------------------------------------------------------------------

_WRAP = re.compile(r"^(?:base_model\.model\.|module\.|model\.(?=unet\.|text_encoder))+")
_ADAPTER = re.compile(  # a name that PEFT gives an adapter, which it leaves out when it saves one itself
    r"\.(lora_[AB]|lora_magnitude_vector|oft_R)\.[^.]+\.(weight|bias)$|"
    r"\.(hada_\w+|lokr_\w+|ia3_l|lora_magnitude_vector)\.(?!weight$)[^.]+$"
)
_PREFIX = re.compile(
    r"^(?:(?P<unet>unet|diffusion_model)|(?P<two>text_encoder_2|text_encoders\.clip_g(?:\.transformer)?)|"
    r"(?P<one>text_encoder|text_encoders\.clip_[lh](?:\.transformer)?))\."
)
_OLD = re.compile(
    r"(?P<path>[A-Za-z0-9_.]{1,200}?)\.(?:processor\.)?to_(?P<which>q|k|v|out)_lora\.(?P<piece>down\.weight|up\.weight|alpha)"
)
_OLD_PIECES = {"down.weight": "lora_down.weight", "up.weight": "lora_up.weight", "alpha": "alpha"}
_UNET_START = ("down_blocks.", "up_blocks.", "mid_block.", "conv_", "time_embedding.", "add_embedding.")
_ORIGINAL_START = ("input_blocks.", "middle_block.", "output_blocks.", "out.", "time_embed.", "label_emb.")
_TEXT_START = ("text_model.", "encoder.layers.", "text_projection")
_SUFFIXES = {
    "lora_A.weight": "lora_down.weight",
    "lora.down.weight": "lora_down.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora.alpha": "alpha",
    "lora_linear_layer.alpha": "alpha",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_B.bias": "lora_B.bias",
    "ia3_l": "ia3_l",
    **{name: name for name in SUFFIXES},
}
_LONGEST_FIRST = sorted(_SUFFIXES, key=len, reverse=True)


def parse_diffusers_key(key: str) -> TensorKey | None:
    """Parse diffusers', PEFT's or ComfyUI's name; the tensor's name may be PEFT's. None where it is none of theirs."""
    rest = _WRAP.sub("", _ADAPTER.sub(_without_adapter, key.replace("_orig_mod.", "")))
    prefix = _PREFIX.match(rest)
    rest = _WRAP.sub("", rest[prefix.end() :]) if prefix else rest
    component = _component_of(prefix, rest)
    if component is None:
        return None
    if old := _OLD.fullmatch(rest):
        path = f"{old['path']}.{_modernize(old['which'], component)}"
        return TensorKey(_layer_path(component, path), _OLD_PIECES[old["piece"]], path)
    for suffix in _LONGEST_FIRST:
        if rest.endswith(f".{suffix}"):
            path = rest.removesuffix(f".{suffix}").replace(".processor.", ".")
            path = f"{path}.0" if path.endswith(".to_out") else path
            return TensorKey(_layer_path(component, path), _SUFFIXES[suffix], path)
    return None


def _without_adapter(match: re.Match) -> str:
    return f".{match[1]}.{match[2]}" if match[1] else f".{match[3]}"


def _component_of(prefix: re.Match | None, rest: str) -> str | None:
    if prefix:
        return "unet" if prefix["unet"] else "te2" if prefix["two"] else "text_encoder"
    if rest.startswith(_UNET_START + _ORIGINAL_START):
        return "unet"
    return "text" if rest.startswith(_TEXT_START) else None


def _modernize(which: str, component: str) -> str:
    if component == "unet":
        return "to_out.0" if which == "out" else f"to_{which}"
    return f"{which}_proj"


def _layer_path(component: str, path: str) -> LayerPath:
    return LayerPath(component, path.replace(".", "_") if component == "unet" else text_name(path))
