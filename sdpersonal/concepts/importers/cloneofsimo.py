"""Read cloneofsimo's LoRAs: layers by number, in the order in which that program walked the model.

    .safetensors   `unet:<i>:up`, `unet:<i>:down`, `text_encoder:<i>:...`; and rows that the metadata call "<embed>"
    .pt            a list [up, down, up, down, ...] for one model

The order is down, up, then middle (diffusers made the middle block last); in each transformer the self attention, then
GEGLU and cross attention, whichever that version of diffusers had first, which the widths tell. Their scale is 1, so
alpha is the rank. Words `<s1>`, `<s2>` stand together in their prompts, so they are one token here.
Source: cloneofsimo lora `lora_diffusion/lora.py` (`save_safeloras_with_embeds`, `_find_modules_v2`).
"""

from __future__ import annotations

import re

import numpy as np

from ...errors import UserError, printable
from ...prompts import Token
from ..concept import Concept, Lora, LoraLayer
from ..strict_safetensors import damaged_file_error
from .contents import FileContents
from .detect_base import LayerPath, WeightSize, base_of_layers
from .to_concept import base_from_widths, make_concept

_KEY = re.compile(r"(unet|text_encoder):(\d{1,4}):(up|down)")
_EMBEDDING_MARK = "<embed>"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out_0")
_TEXT_ATTENTION = ("k_proj", "v_proj", "q_proj", "out_proj")
_BLOCKS = (
    *(f"down_blocks_{level}_attentions_{layer}" for level in range(3) for layer in range(2)),
    *(f"up_blocks_{level}_attentions_{layer}" for level in range(1, 4) for layer in range(3)),
    "mid_block_attentions_0",
)
_Pairs = list[tuple[np.ndarray, np.ndarray]]  # (down, up)


def fits(content: FileContents) -> bool:
    return any(_KEY.fullmatch(key) for key in content.shapes) or _is_list(content)


def read(content: FileContents, token: Token | None = None) -> Concept:
    """Convert the contents to a concept. Raises UserError."""
    models, words = (_layers_from_list(content), []) if _is_list(content) else _layers_from_keys(content)
    layers: dict[LayerPath, LoraLayer] = {}
    for model, pairs in models.items():
        names = _layer_paths(pairs, content.name, model)
        layers |= {part: LoraLayer(down, up, float(len(down))) for part, (down, up) in zip(names, pairs, strict=True)}
    sizes = {part: WeightSize(len(layer.up), layer.down.shape[1], 2) for part, layer in layers.items()}
    base = base_of_layers(sizes, content)
    vectors = {}
    if words:
        embeddings = [content.embeddings(key) for key in words]
        if (
            len({array.shape[1] for array in embeddings}) > 1
            or base_from_widths({"clip_l": embeddings[0].shape[1]}, content.name) != base
        ):
            raise UserError(f"{printable(content.name)} has vectors that do not fit its LoRA for {base}.")
        vectors["clip_l"] = np.concatenate(embeddings)
    word = words[0] if len(words) == 1 else ""
    lora = Lora({f"lora_{part.component}_{part.path}": layer for part, layer in layers.items()})
    return make_concept(content, base, vectors, lora, token, word)


def _is_list(content: FileContents) -> bool:
    count = len(content.shapes)
    return content.is_flat and count > 1 and content.shapes.keys() == {str(number) for number in range(count)}


def _layers_from_list(content: FileContents) -> dict[str, _Pairs]:
    arrays = [content.load_tensor(str(number)) for number in range(len(content.shapes))]
    if len(arrays) % 2:
        raise damaged_file_error(content.name, "a layer lacks its half")
    pairs = list(zip(arrays[1::2], arrays[::2], strict=True))
    return {"unet" if len(pairs) == 9 * len(_BLOCKS) else "text_encoder": pairs}


def _layers_from_keys(content: FileContents) -> tuple[dict[str, _Pairs], list[str]]:
    """Return the layers in order by model, and the names of embeddings in order."""
    tensors_by_model: dict[str, dict[tuple[int, str], np.ndarray]] = {}
    words = []
    for key in content.shapes:
        if match := _KEY.fullmatch(key):
            tensors_by_model.setdefault(match[1], {})[int(match[2]), match[3]] = content.load_tensor(key)
        elif content.metadata.get(key) == _EMBEDDING_MARK:
            words.append(key)
        else:
            raise damaged_file_error(content.name, f"it has an unknown tensor {printable(key)}")
    models: dict[str, _Pairs] = {}
    for model, tensors in tensors_by_model.items():
        expected = {(number, piece) for number in range(len(tensors) // 2) for piece in ("up", "down")}
        if tensors.keys() != expected:
            raise damaged_file_error(content.name, f"layers of its {model} are missing")
        models[model] = [(tensors[number, "down"], tensors[number, "up"]) for number in range(len(tensors) // 2)]
    return models, sorted(words, key=lambda word: [int(digits) for digits in re.findall(r"\d{1,6}", word)] or [0])


def _layer_paths(pairs: _Pairs, name: str, model: str) -> list[LayerPath]:
    """Return the layers of these pairs. Raises UserError where their number is not Stable Diffusion's."""
    if any(array.ndim != 2 for pair in pairs for array in pair):
        raise UserError(
            f"{printable(name)} also changes convolutions, whose order in the file is not known.",
            "Ask its author for a kohya LoRA.",
        )
    if model == "unet" and len(pairs) == 9 * len(_BLOCKS):
        return [
            LayerPath("unet", flat) for number in range(len(_BLOCKS)) for flat in _transformer_layers(number, pairs)
        ]
    if model == "text_encoder" and pairs and len(pairs) % len(_TEXT_ATTENTION) == 0 and len(pairs) <= 4 * 32:
        layers = range(len(pairs) // len(_TEXT_ATTENTION))
        return [
            LayerPath("te", f"text_model_encoder_layers_{layer}_self_attn_{which}")
            for layer in layers
            for which in _TEXT_ATTENTION
        ]
    raise UserError(
        f"{printable(name)} changes {len(pairs)} layers of the {model}; Stable Diffusion has other numbers.",
        "Ask its author for a kohya or diffusers LoRA.",
    )


def _transformer_layers(number: int, pairs: _Pairs) -> list[str]:
    """Return the nine layers of one transformer, in the file's order."""
    (down, up) = pairs[9 * number + 4]
    start = f"{_BLOCKS[number]}_transformer_blocks_0"
    first, second = ([f"{start}_{attention}_{which}" for which in _ATTENTION] for attention in ("attn1", "attn2"))
    feed = [f"{start}_ff_net_0_proj"]
    wide = up.shape[0] > down.shape[1]  # GEGLU goes to eight times the width
    return [*first, *feed, *second] if wide else [*first, *second, *feed]
