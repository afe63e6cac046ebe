"""diffusers' and PEFT's names for a LoRA's tensors, in every way they have had.

    unet.<path>.attn1.processor.to_q_lora.down.weight          diffusers until 0.22; `unet.` may be missing
    unet.<path>.to_q.lora.down.weight                          after that
    text_encoder.<path>.q_proj.lora_linear_layer.down.weight
    unet.<path>.to_q.lora_A.weight                             PEFT; alone it says `base_model.model.<path>`
    diffusion_model.<original path>.lora_up.weight             ComfyUI's own; its text encoders are
    text_encoders.clip_l.transformer.<path>.lora_up.weight     `clip_l`, `clip_g`, and `clip_h` of SD 2.x

Alpha is `<module>.alpha`, or in `lora_adapter_metadata` or `adapter_config.json`; with none of them it is the rank.
Sources: diffusers `utils/state_dict_utils.py`, `loaders/lora_base.py`; PEFT `tuners/lora/config.py`, `utils/other.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ..errors import PersonalError
from ..prompts import show
from ..tensorfile import damaged, strict_json
from .content import Content
from .kinds import Part
from .layers import text_name

METADATA = "lora_adapter_metadata"
_WRAP = re.compile(r"^(base_model\.model\.|model\.(?=unet\.|text_encoder))")
_PREFIX = re.compile(
    r"^(?:(?P<unet>unet|diffusion_model)|(?P<two>text_encoder_2|text_encoders\.clip_g(?:\.transformer)?)|"
    r"(?P<one>text_encoder|text_encoders\.clip_[lh](?:\.transformer)?))\."
)
_OLD = re.compile(
    r"(?P<path>[A-Za-z0-9_.]{1,200}?)\.(?:processor\.)?to_(?P<which>q|k|v|out)_lora\.(?P<piece>down\.weight|up\.weight|alpha)"
)
_UNET_START = ("down_blocks.", "up_blocks.", "mid_block.", "conv_", "time_embedding.", "add_embedding.")
_ORIGINAL_START = ("input_blocks.", "middle_block.", "output_blocks.", "out.", "time_embed.", "label_emb.")
_TEXT_START = ("text_model.", "encoder.layers.", "text_projection")
_TAKEN_FROM_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_VARIANTS = ("use_dora", "use_qalora", "use_bdlora", "kasa_config")
_SUFFIXES = {
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora.down.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "lora_down.weight": "down",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora.up.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "lora_up.weight": "up",
    "lora.alpha": "alpha",
    "lora_linear_layer.alpha": "alpha",
    "alpha": "alpha",
}


def parsed(key: str) -> tuple[Part, str, str] | None:
    """(layer, "down", "up" or "alpha", module path with its component) that a tensor's name tells, or None."""
    rest = _WRAP.sub("", key)
    prefix = _PREFIX.match(rest)
    rest = rest[prefix.end() :] if prefix else rest
    component = _component(prefix, rest)
    if component is None:
        return None
    if old := _OLD.fullmatch(rest):
        path = f"{old['path']}.{_modern(old['which'], component)}"
        return _part(component, path), old["piece"].partition(".")[0], path
    for suffix, piece in _SUFFIXES.items():
        if rest.endswith(f".{suffix}"):
            path = rest.removesuffix(f".{suffix}").replace(".processor.", ".")
            path = f"{path}.0" if path.endswith(".to_out") else path
            return _part(component, path), piece, path
    return None


def _component(prefix: re.Match | None, rest: str) -> str | None:
    if prefix:
        return "unet" if prefix["unet"] else "te2" if prefix["two"] else "text_encoder"
    if rest.startswith(_UNET_START + _ORIGINAL_START):
        return "unet"
    return "text" if rest.startswith(_TEXT_START) else None


def _modern(which: str, component: str) -> str:
    if component == "unet":
        return "to_out.0" if which == "out" else f"to_{which}"
    return f"{which}_proj"


def _part(component: str, path: str) -> Part:
    return Part(component, path.replace(".", "_") if component == "unet" else text_name(path))


def adapters(content: Content) -> dict[str, dict[str, object]]:
    """PEFT's configuration of each component ("unet", "text_encoder", ...), where the header has it."""
    text = content.facts.get(METADATA)
    if not isinstance(text, str):
        return {}
    try:
        found = strict_json(text)
    except ValueError as error:
        raise damaged(content.name, f"{METADATA}: {error}") from error
    if not isinstance(found, dict):
        raise damaged(content.name, f"its {METADATA} is no JSON object")
    nested: dict[str, dict[str, object]] = {}
    for key, value in found.items():
        component, _, field = key.partition(".")
        nested.setdefault(component, {})[field] = value
    return nested


def refuse_variants(adapter: Mapping[str, object], name: str) -> None:
    """Raise PersonalError where PEFT's configuration says that adding up @ down to the base is not what was meant."""
    if (kind := str(adapter.get("peft_type", "LORA"))) != "LORA":
        raise PersonalError(f"{show(name)} is a {show(kind)}, not a LoRA.", "Ask for a plain LoRA.")
    start = str(adapter.get("init_lora_weights", True))
    if start.lower().startswith(_TAKEN_FROM_THE_BASE):
        raise PersonalError(
            f"{show(name)} began as a part of the base (PEFT's {show(start)}), and fits only what was left of it.",
            "Ask its author to convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
        )
    if variant := next((each for each in _VARIANTS if adapter.get(each)), None):
        raise PersonalError(f"{show(name)} is no plain LoRA (PEFT's {variant}).", "Ask for a plain LoRA.")


def alpha_of(adapter: Mapping[str, object], path: str, rank: int, name: str) -> float:
    """alpha of one module by PEFT's configuration. Raises PersonalError where it is no number that I can read."""
    alpha = adapter.get("lora_alpha", rank)
    patterns = adapter.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise damaged(name, "its alpha_pattern is no JSON object")
    for pattern, value in patterns.items():
        plain = pattern.replace("\\.", ".").removeprefix("^").removesuffix("$")
        if not re.fullmatch(r"[A-Za-z0-9_.]+", plain):  # PEFT would run it as a regular expression: a stranger's
            raise PersonalError(f"{show(name)} has an alpha_pattern that I do not read: {show(pattern)}.")
        if path == plain or path.endswith(f".{plain}"):
            alpha = value
            break
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise damaged(name, "its alpha is no number")
    return alpha * math.sqrt(rank) if adapter.get("use_rslora") is True else float(alpha)
