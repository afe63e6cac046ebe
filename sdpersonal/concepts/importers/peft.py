"""Read PEFT's configuration of a LoRA, and bring its tensors into the form of `layer_changes`.

Alpha is `<module>.alpha`, or in `lora_adapter_metadata` or `adapter_config.json`, whose default is 8; with none of them
it is the rank. Sources: diffusers `loaders/lora_base.py`; PEFT `tuners/lora/config.py`, `tuners/*/layer.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np

from ...errors import UserError, printable
from ...storage.reading import parse_strict_json
from ..layer_changes import SUFFIXES, form, rank_of
from ..strict_safetensors import damaged_file_error
from .contents import FileContents
from .peft_patterns import PatternTable, RefusedPattern

PEFT_METADATA = "lora_adapter_metadata"
_INITIALIZED_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config")
_KINDS = ("LORA", "LOHA", "LOKR", "IA3", "OFT")
_DEFAULT_ALPHA, _DEFAULT_RANK = 8, 8


def peft_configs(content: FileContents) -> dict[str, dict[str, object]]:
    """Return PEFT's configuration of each component ("unet", "text_encoder", ...), where the header has it."""
    text = content.metadata.get(PEFT_METADATA)
    if not isinstance(text, str):
        return {}
    try:
        configs = parse_strict_json(text)
    except ValueError as error:
        raise damaged_file_error(content.name, f"{PEFT_METADATA}: {error}") from error
    if not isinstance(configs, dict):
        raise damaged_file_error(content.name, f"its {PEFT_METADATA} is no JSON object")
    nested: dict[str, dict[str, object]] = {}
    for key, value in configs.items():
        component, dot, field = key.partition(".")
        component, field = (component, field) if dot else ("", key)
        nested.setdefault(component, {})[field] = value
    return nested


def refuse_variants(config: Mapping[str, object], name: str) -> None:
    """Raise UserError where, by PEFT's configuration, the change is more than adding up @ down to the base."""
    if (kind := str(config.get("peft_type") or "LORA")) not in _KINDS:
        raise UserError(f"{printable(name)} is PEFT's {printable(kind)}, which is not read.", "Ask for a plain LoRA.")
    start = str(config.get("init_lora_weights", True))
    if start.lower().startswith(_INITIALIZED_FROM_BASE):
        raise UserError(
            f"{printable(name)} was initialized from the base (PEFT's {printable(start)}), and fits only "
            "what was left of it.",
            "Ask its author to convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
        )
    if variant := next((key for key in _VARIANTS if config.get(key)), None):
        raise UserError(f"{printable(name)} is no plain LoRA (PEFT's {variant}).", "Ask for a plain LoRA.")


def module_alpha(config: Mapping[str, object], path: str, rank: int, name: str) -> float:
    """Return a module's alpha by PEFT's configuration, for rsLoRA such that alpha / r is its alpha / sqrt r.

    Raises UserError where the configuration of the file called `name` holds no number there.
    """
    key = "alpha" if config.get("peft_type") in ("LOHA", "LOKR") else "lora_alpha"
    alpha = _of_module(config, key, "alpha_pattern", path, name)
    alpha = _DEFAULT_ALPHA if alpha is None else alpha
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise damaged_file_error(name, "its alpha is no number")
    return alpha * math.sqrt(rank) if config.get("use_rslora") is True else float(alpha)


def _of_module(config: Mapping[str, object], key: str, patterns: str, path: str, name: str) -> object:
    """Return a module's setting: that of the first pattern which its path fits, else the general one."""
    table = config.get(patterns) or {}
    if not isinstance(table, dict):
        raise damaged_file_error(name, f"its {patterns} is no JSON object")
    if not table:
        return config.get(key)
    keys = tuple(table)
    try:
        number = _pattern_table(keys).first_match(path)
    except RefusedPattern as error:
        raise UserError(
            f"{printable(name)} has patterns in its {patterns} that are not read, such as {printable(str(error))}.",
            "Ask its author for a file that names the modules in full.",
        ) from None
    return config.get(key) if number is None else table[keys[number]]


@functools.lru_cache(maxsize=8)
def _pattern_table(patterns: tuple[str, ...]) -> PatternTable:
    return PatternTable(patterns)


# --- PEFT's tensors in our form ---------------------------------------------------------------------------------------


def convert_tensors(
    tensors: dict[str, np.ndarray], config: Mapping[str, object] | None, path: str, name: str
) -> dict[str, np.ndarray]:
    """Convert a layer's tensors to the form of `layer_changes`. Raises UserError where they have none.

    config: PEFT's configuration, None where the file has none; path: the module's; name: the file's.
    """
    tensors = dict(tensors)
    if "magnitude" in tensors:  # one number a row, for a convolution (1, out, 1, 1)
        down = tensors.get("lora_down.weight")
        magnitude = tensors.pop("magnitude").reshape(-1)
        tensors["dora_scale"] = magnitude.reshape(-1, *(1 for _ in (down.shape[1:] if down is not None else (0,))))
    if "ia3_l" in tensors:
        tensors |= _ia3(tensors.pop("ia3_l"), name)
    if "oft_R.weight" in tensors and config:
        tensors |= _oft_terms(config, name)
    setting = _setting(tensors, config, path, name)
    if "lora_B.bias" in tensors:
        bias = tensors.pop("lora_B.bias").astype(np.float32)
        tensors["diff_b"] = bias * np.float32(setting[0] / setting[1] if setting else _tensor_scale(tensors))
    return _scaled(tensors, *setting) if setting else tensors


def _setting(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, object] | None, path: str, name: str
) -> tuple[float, int] | None:
    """Return a module's (alpha, r) by PEFT's configuration; None where the tensors tell, or the change has none."""
    kind = form(tensors.keys() & SUFFIXES)
    if kind not in ("LoRA", "LoHa", "LoKr"):
        return None
    if config is not None and (peft_type := str(config.get("peft_type") or kind).upper()) != kind.upper():
        raise damaged_file_error(name, f"its configuration says {printable(peft_type)}, its tensors are a {kind}")
    if "alpha" in tensors:  # 0 means no change here; by kohya's names it means the rank
        return None if tensors["alpha"].any() else (0.0, 1)
    if config is None:
        return None
    rank = rank_of(tensors) or _of_module(config, "r", "rank_pattern", path, name) or _DEFAULT_RANK
    if type(rank) is not int or rank < 1:
        raise damaged_file_error(name, "its rank is no whole number")
    return module_alpha(config, path, rank, name), rank


def _tensor_scale(tensors: Mapping[str, np.ndarray]) -> float:
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


def _oft_terms(config: Mapping[str, object], name: str) -> dict[str, np.ndarray]:
    """Return how PEFT computes rotations: terms of a series, 5 by default, or 0 for exactly."""
    terms = config.get("num_cayley_neumann_terms")
    terms = 5 if terms is None else terms
    if type(terms) is not int or not 1 <= terms <= 100:
        raise damaged_file_error(name, "its num_cayley_neumann_terms are no number from 1 to 100")
    return {"oft_terms": np.array(0 if config.get("use_cayley_neumann") is False else terms, np.float32)}
