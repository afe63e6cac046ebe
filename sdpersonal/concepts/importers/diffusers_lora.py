"""Parse diffusers' and PEFT's names for a LoRA's tensors, past and present, and PEFT's configuration beside them.

    unet.<path>.attn1.processor.to_q_lora.down.weight          diffusers until 0.22; `unet.` may be missing
    unet.<path>.to_q.lora.down.weight                          after that
    text_encoder.<path>.q_proj.lora_linear_layer.down.weight
    unet.<path>.to_q.lora_A.weight                             PEFT; alone it says `base_model.model.<path>`
    diffusion_model.<original path>.lora_up.weight             ComfyUI's own; its text encoders are
    text_encoders.clip_l.transformer.<path>.lora_up.weight     `clip_l`, `clip_g`, and `clip_h` of SD 2.x

Any tensor that `layer_changes` lists may take the place of a LoRA's. torch.compile puts `_orig_mod` into paths,
data parallel training `module` before them, PEFT an adapter's name behind `lora_A`: all of it is ignored.

Alpha is `<module>.alpha`, or in `lora_adapter_metadata` or `adapter_config.json`, whose default is 8; with none of them
it is the rank. Sources: diffusers `utils/state_dict_utils.py`, `loaders/lora_base.py`; PEFT `tuners/lora/config.py`,
`tuners/*/layer.py`, `utils/other.py`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping

import numpy as np

from ...errors import UserError
from ...prompts import printable
from ..layer_changes import SUFFIXES, form, rank_of
from ..strict_safetensors import damaged_file_error, parse_strict_json
from .contents import FileContents
from .detect_base import LayerPath
from .layers import text_name

METADATA = "lora_adapter_metadata"
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
_TAKEN_FROM_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config")
_KINDS = ("LORA", "LOHA", "LOKR", "IA3", "OFT")
_DEFAULT_ALPHA, _DEFAULT_RANK = 8, 8
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


def parse_key(key: str) -> tuple[LayerPath, str, str] | None:
    """Parse a name to (layer, the tensor's name in `changes` or PEFT's, module path with its component), or None."""
    rest = _WRAP.sub("", _ADAPTER.sub(_without_adapter, key.replace("_orig_mod.", "")))
    prefix = _PREFIX.match(rest)
    rest = _WRAP.sub("", rest[prefix.end() :]) if prefix else rest
    component = _component_of(prefix, rest)
    if component is None:
        return None
    if old := _OLD.fullmatch(rest):
        path = f"{old['path']}.{_modernize(old['which'], component)}"
        return _layer_path(component, path), _OLD_PIECES[old["piece"]], path
    for suffix in _LONGEST_FIRST:
        if rest.endswith(f".{suffix}"):
            path = rest.removesuffix(f".{suffix}").replace(".processor.", ".")
            path = f"{path}.0" if path.endswith(".to_out") else path
            return _layer_path(component, path), _SUFFIXES[suffix], path
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


def peft_configs(content: FileContents) -> dict[str, dict[str, object]]:
    """Return PEFT's configuration of each component ("unet", "text_encoder", ...), where the header has it."""
    text = content.metadata.get(METADATA)
    if not isinstance(text, str):
        return {}
    try:
        configs = parse_strict_json(text)
    except ValueError as error:
        raise damaged_file_error(content.name, f"{METADATA}: {error}") from error
    if not isinstance(configs, dict):
        raise damaged_file_error(content.name, f"its {METADATA} is no JSON object")
    nested: dict[str, dict[str, object]] = {}
    for key, value in configs.items():
        component, dot, field = key.partition(".")
        component, field = (component, field) if dot else ("", key)
        nested.setdefault(component, {})[field] = value
    return nested


def refuse_variants(adapter: Mapping[str, object], name: str) -> None:
    """Raise UserError where, by PEFT's configuration, the change is more than adding up @ down to the base."""
    if (kind := str(adapter.get("peft_type") or "LORA")) not in _KINDS:
        raise UserError(f"{printable(name)} is PEFT's {printable(kind)}, which is not read.", "Ask for a plain LoRA.")
    start = str(adapter.get("init_lora_weights", True))
    if start.lower().startswith(_TAKEN_FROM_THE_BASE):
        raise UserError(
            f"{printable(name)} began as a part of the base (PEFT's {printable(start)}), and fits only "
            "what was left of it.",
            "Ask its author to convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
        )
    if variant := next((key for key in _VARIANTS if adapter.get(key)), None):
        raise UserError(f"{printable(name)} is no plain LoRA (PEFT's {variant}).", "Ask for a plain LoRA.")


def module_alpha(adapter: Mapping[str, object], path: str, rank: int, name: str) -> float:
    """Return a module's alpha by PEFT's configuration, for rsLoRA such that alpha / r is its alpha / sqrt r.

    Raises UserError where the configuration of the file called `name` holds no number there.
    """
    key = "alpha" if adapter.get("peft_type") in ("LOHA", "LOKR") else "lora_alpha"
    alpha = _of_module(adapter, key, "alpha_pattern", path, name)
    alpha = _DEFAULT_ALPHA if alpha is None else alpha
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise damaged_file_error(name, "its alpha is no number")
    return alpha * math.sqrt(rank) if adapter.get("use_rslora") is True else float(alpha)


def _of_module(adapter: Mapping[str, object], key: str, patterns: str, path: str, name: str) -> object:
    """Return a module's setting: that of the first pattern which its path fits, else the general one."""
    table = adapter.get(patterns) or {}
    if not isinstance(table, dict):
        raise damaged_file_error(name, f"its {patterns} is no JSON object")
    _check_patterns(table, patterns, name)
    matching = (value for pattern, value in table.items() if re.match(rf"(.*\.)?({pattern})$", path))
    return next(matching, adapter.get(key))


# PEFT runs a pattern as a regular expression. A stranger's may take for ever, so only those that cannot are run: words,
# sets and alternatives, of which one may be of any length, and runs of digits.
_PATTERN = re.compile(
    r"\^?(?:[A-Za-z0-9_-]|\\[.dw_-]|\.(?![*+?{])|\\d\+|\[[A-Za-z0-9_-]{1,40}\]\+?|"
    r"\((?:\?:)?[A-Za-z0-9_.|\\]{1,200}\)|(?P<wide>\.[*+]))*\$?"
)
_MOST_PATTERNS, _MOST_PATTERN = 4096, 250
_MOST_WIDE, _MOST_WIDE_PATTERNS = 2, 64


@functools.lru_cache(maxsize=8)
def _checked(patterns: tuple[str, ...]) -> str | None:
    """Return the first pattern that must not be run, or None."""
    wide = 0
    for pattern in patterns[: _MOST_PATTERNS + 1]:
        runs = len(re.findall(r"[*+]", pattern))
        wide += runs > 0
        if len(pattern) > _MOST_PATTERN or not _PATTERN.fullmatch(pattern) or runs > _MOST_WIDE:
            return pattern
    return patterns[0] if wide > _MOST_WIDE_PATTERNS or len(patterns) > _MOST_PATTERNS else None


def _check_patterns(table: Mapping[str, object], key: str, name: str) -> None:
    if (refused := _checked(tuple(table))) is not None:
        raise UserError(
            f"{printable(name)} has patterns in its {key} that are not read, such as {printable(refused)}.",
            "Ask its author for a file that names the modules in full.",
        )


# --- PEFT's tensors in our form ---------------------------------------------------------------------------------------


def native(
    tensors: dict[str, np.ndarray], adapter: Mapping[str, object] | None, path: str, name: str
) -> dict[str, np.ndarray]:
    """Convert a layer's tensors to the form of `changes`. adapter: PEFT's configuration, None where the file has none.

    Raises UserError where they have no such form.
    """
    tensors = dict(tensors)
    if "magnitude" in tensors:  # one number a row, for a convolution (1, out, 1, 1)
        down = tensors.get("lora_down.weight")
        magnitude = tensors.pop("magnitude").reshape(-1)
        tensors["dora_scale"] = magnitude.reshape(-1, *(1 for _ in (down.shape[1:] if down is not None else (0,))))
    if "ia3_l" in tensors:
        tensors |= _ia3(tensors.pop("ia3_l"), name)
    if "oft_R.weight" in tensors and adapter:
        tensors |= _oft_terms(adapter, name)
    setting = _setting(tensors, adapter, path, name)
    if "lora_B.bias" in tensors:
        bias = tensors.pop("lora_B.bias").astype(np.float32)
        tensors["diff_b"] = bias * np.float32(setting[0] / setting[1] if setting else _own_scale(tensors))
    return _scaled(tensors, *setting) if setting else tensors


def _setting(
    tensors: Mapping[str, np.ndarray], adapter: Mapping[str, object] | None, path: str, name: str
) -> tuple[float, int] | None:
    """Return a module's (alpha, r) by PEFT's configuration; None where the tensors tell, or the change has none."""
    kind = form(tensors.keys() & SUFFIXES)
    if kind not in ("LoRA", "LoHa", "LoKr"):
        return None
    if adapter is not None and (peft_type := str(adapter.get("peft_type") or kind).upper()) != kind.upper():
        raise damaged_file_error(name, f"its configuration says {printable(peft_type)}, its tensors are a {kind}")
    if "alpha" in tensors:  # 0 means no change here; by kohya's names it means the rank
        return None if tensors["alpha"].any() else (0.0, 1)
    if adapter is None:
        return None
    rank = rank_of(tensors) or _of_module(adapter, "r", "rank_pattern", path, name) or _DEFAULT_RANK
    if type(rank) is not int or rank < 1:
        raise damaged_file_error(name, "its rank is no whole number")
    return module_alpha(adapter, path, rank, name), rank


def _own_scale(tensors: Mapping[str, np.ndarray]) -> float:
    rank = rank_of(tensors) or 1
    return float(tensors["alpha"].reshape(-1)[0]) / rank if "alpha" in tensors else 1.0


def _scaled(tensors: dict[str, np.ndarray], alpha: float, rank: int) -> dict[str, np.ndarray]:
    """Set that alpha; where the change can hold none, multiply a matrix by alpha / r."""
    if rank_of(tensors) and alpha > 0:
        return tensors | {"alpha": np.array(alpha)}
    first = next((key for key in ("lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a") if key in tensors), None)
    if first is None:
        return tensors  # half a change, which is refused later
    others = {key: value for key, value in tensors.items() if key != "alpha"}
    return others | {first: tensors[first].astype(np.float32) * np.float32(alpha / rank)}


def _ia3(scales: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Convert PEFT's `ia3_l`, (1, in) or (out, 1), to LyCORIS' `weight` = `ia3_l` - 1. Rows scale the bias too."""
    if scales.ndim != 2 or 1 not in scales.shape:
        raise UserError(f"{printable(name)} is an IA3 of convolutions, which PEFT's file does not tell the side of.")
    on_input = scales.shape[0] == 1
    return {
        "weight": scales.reshape(-1).astype(np.float32) - 1,
        "on_input": np.array(float(on_input), np.float32),
        **({} if on_input else {"on_bias": np.array(1, np.float32)}),
    }


def _oft_terms(adapter: Mapping[str, object], name: str) -> dict[str, np.ndarray]:
    """Return how PEFT computes rotations: terms of a series, 5 by default, or 0 for exactly."""
    terms = adapter.get("num_cayley_neumann_terms")
    terms = 5 if terms is None else terms
    if type(terms) is not int or not 1 <= terms <= 100:
        raise damaged_file_error(name, "its num_cayley_neumann_terms are no number from 1 to 100")
    return {"oft_terms": np.array(0 if adapter.get("use_cayley_neumann") is False else terms, np.float32)}
