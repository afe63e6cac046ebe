"""Detect a LoRA's base by its layers; the file's metadata count only where the layers fit two bases."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ...config.base import BaseKind
from ...errors import UserError, printable
from ..card import BASE_LABELS, BASE_TITLES
from . import layer_shapes
from .contents import FileContents
from .layers import unet_name
from .to_concept import MAX_TINY_WIDTH

_FULL_WIDTH = 320  # of the first level of every Stable Diffusion
_FIRST_LEVEL = ("down_blocks_0_attentions", "up_blocks_3_")
_ORIGINAL = re.compile(r"(input_blocks|middle_block|output_blocks)_\d")
_ATTENTION = re.compile(r"lora_unet_((?:down|up|input|output)_blocks_\d+|mid_block|middle_block).*_attn\d_to_[qkv]$")
_BUILT_IN: BaseKind = "tiny"
_PUBLISHED: list[BaseKind] = ["sd1", "sd2", "sdxl"]
_CONV_IN = ("lora_unet_conv_in", "lora_unet_input_blocks_0_0")


@dataclass(frozen=True)
class LayerPath:
    """The position of a layer: component "unet", "te", "te1", "te2" or "text" (one of the two), path with `_` for `.`.

    is_kohya_name: the name is of kohya's kind, which has the original's block names for SDXL alone.
    """

    component: str
    path: str
    is_kohya_name: bool = field(default=False, compare=False)


class WeightSize(NamedTuple):
    """The shape of a layer's weight as its tensors show it: rows, numbers in a row, axes; 0 where they do not."""

    rows: int
    width: int
    axes: int = 0


_Sizes = Mapping[LayerPath, WeightSize]
_UNKNOWN = WeightSize(0, 0)


def layer_name(part: LayerPath, base: BaseKind, size: WeightSize = _UNKNOWN) -> str:
    """Return the layer's name in a concept for that base."""
    if part.component == "unet":
        return f"lora_unet_{unet_name(part.path, base)}"
    if base != "sdxl":
        return f"lora_te_{part.path}"
    first = part.component in ("te", "te1", "text_encoder")
    if part.component == "text":  # PEFT alone does not say which encoder; SDXL's differ in width
        first = bool({size.rows, size.width} & {768, 3072})
    return f"lora_te{1 if first else 2}_{part.path}"


def base_of_layers(layers: _Sizes, content: FileContents) -> BaseKind:
    """Return the base whose table has every layer with its widths. Raises UserError, naming a layer that none has."""
    misfits = {base: _misfits(layers, base) for base in layer_shapes.UNETS}
    bases = [base for base, wrong in misfits.items() if not wrong]
    if len(bases) == 1:
        return bases[0]
    if bases:
        return _choose_base(bases, layers, content)
    likely = (base for base in _PUBLISHED if _declared_base(content) in (base, None))
    if stand_in := next((base for base in likely if _is_for_narrow_test_model(layers, base)), None):
        return stand_in
    if _is_narrow(layers) and not _is_of_built_in(layers):
        wrong, nearest = _narrow_misfit(layers), _BUILT_IN
    else:
        allowed = [_BUILT_IN] if _is_narrow(layers) else _PUBLISHED
        nearest = min(allowed, key=lambda base: (len(misfits[base]), *_mismatch_order(layers, base)))
        wrong = _describe_misfit(misfits[nearest][0], layers, nearest)
    if not wrong:
        return nearest
    raise UserError(
        f"{printable(content.name)} fits no base: nearest is {BASE_TITLES[nearest]}, but {wrong}.",
        "Ask its author for which base it was made.",
    )


def _misfits(layers: _Sizes, base: BaseKind) -> list[LayerPath]:
    """Return the layers that do not fit that base."""
    table, wrong = layer_shapes.layer_table(base), []
    for part, size in layers.items():
        name = layer_name(part, base, size)
        if _is_misnamed(part, base) or name not in table or not _fits(name, size, table[name]):
            wrong.append(part)
    return wrong


def _describe_misfit(part: LayerPath, layers: _Sizes, base: BaseKind) -> str:
    """Return why one of `_misfits` does not fit, as a part of a sentence."""
    layer, size = f"its layer {printable(part.path)}", layers[part]
    if _is_misnamed(part, base):
        return f"{layer} is named as a text encoder of {BASE_LABELS['sd1' if base == 'sdxl' else 'sdxl']}"
    shape = layer_shapes.layer_table(base).get(layer_name(part, base, size))
    if shape is None:
        return f"{layer} is not in it"
    return f"{layer} changes {_describe_size(size)} numbers, where that has {' x '.join(map(str, shape))}"


def _mismatch_order(layers: _Sizes, base: BaseKind) -> tuple[bool, bool]:
    """Return whether layers are named unlike that base's, and whether none reads text of its width."""
    return any(_is_misnamed(part, base) for part in layers), layer_shapes.UNETS[
        base
    ].cross_attention_dim not in _contexts(layers)


def _fits(name: str, size: WeightSize, shape: layer_shapes.Shape) -> bool:
    widths = {math.prod(shape[1:])}
    if name in _CONV_IN:
        widths = {channels * math.prod(shape[2:]) for channels in (*layer_shapes.IN_CHANNELS, shape[1])}
    # The hidden layer of a text encoder's MLP may have any width.
    rows_fit = name.endswith("_mlp_fc1") or size.rows in (0, shape[0])
    return rows_fit and (name.endswith("_mlp_fc2") or size.width in (0, *widths))


def _describe_size(size: WeightSize) -> str:
    return " x ".join(str(number or "any") for number in (size.rows, size.width))


def _choose_base(bases: list[BaseKind], layers: _Sizes, content: FileContents) -> BaseKind:
    """Choose among bases that all layers fit: by the file's metadata, or by how it names the layers."""
    if (declared := _declared_base(content)) in bases:
        return declared
    if "sdxl" in bases and any(part.is_kohya_name and _ORIGINAL.match(part.path) for part in layers):
        return "sdxl"
    if "sd1" in bases and all(part.component in ("text", "text_encoder") for part in layers):
        return "sd1"  # a LoRA for SDXL would hardly leave out the second encoder
    projections = {size.axes for part, size in layers.items() if part.path.endswith(("proj_in", "proj_out"))}
    if "sd1" in bases and 4 in projections:
        return "sd1"  # the others have linear layers there
    raise UserError(
        f"{printable(content.name)} changes only layers that "
        f"{' and '.join(BASE_TITLES[base] for base in bases)} may share.",
        "Ask its author for a file that says for which base it was made.",
    )


def _declared_base(content: FileContents) -> BaseKind | None:
    version = content.fact("ss_base_model_version") or content.fact("modelspec.architecture")
    if version.startswith(("sdxl", "stable-diffusion-xl")):
        return "sdxl"
    if version.startswith("sdpersonal-tiny"):
        return "tiny"
    if content.fact("ss_v2") == "True" or version.startswith(("sd_v2", "stable-diffusion-v2")):
        return "sd2"
    return "sd1" if version.startswith(("sd_v1", "stable-diffusion-v1")) or content.fact("ss_v2") == "False" else None


# --- narrow and custom bases ------------------------------------------------------------------------------------------


def _contexts(layers: _Sizes) -> set[int]:
    """Return the widths of the text that cross attention reads, and of the text encoders."""
    return {
        size.width
        for part, size in layers.items()
        if part.path.endswith(
            ("attn2_to_k", "attn2_to_v") if part.component == "unet" else ("q_proj", "k_proj", "v_proj", "fc1")
        )
        and size.width
    }


def _is_narrow(layers: _Sizes) -> bool:
    """Return whether these are layers of a base built like Stable Diffusion, only narrower."""
    if contexts := _contexts(layers):
        return max(contexts) <= MAX_TINY_WIDTH
    first = [size for part, size in layers.items() if part.path.startswith(_FIRST_LEVEL)]
    return bool(first) and all(1 < size.width < _FULL_WIDTH for size in first)


def _is_for_narrow_test_model(layers: _Sizes, base: BaseKind) -> bool:
    """Return whether it is for a model with that base's layers and text width whose UNet is at most a quarter as wide.

    Such models are made to test programs; their LoRAs work on them alone.
    """
    table = layer_shapes.layer_table(base)
    if not any(size.width for size in layers.values()):
        return False  # a rotation of few rows suggests a damaged file rather than a narrow model
    for part, size in layers.items():
        name = layer_name(part, base, size)
        if name not in table or _is_misnamed(part, base):
            return False
        rows, narrow = table[name][0], part.component == "unet"
        if narrow and (not 0 < size.rows <= rows // 4 or size.rows % 8):
            return False
        reads_text = not narrow or part.path.endswith(("attn2_to_k", "attn2_to_v"))
        if reads_text and not _fits(name, size._replace(rows=0) if narrow else size, table[name]):
            return False
    return any(part.component == "unet" for part in layers) and not _first_uneven(layers, base)


def _is_misnamed(part: LayerPath, base: BaseKind) -> bool:
    """Return whether its name is of a text encoder that the base lacks: SDXL has two, the others one."""
    return part.component in (("te",) if base == "sdxl" else ("te1", "te2"))


def _is_of_built_in(layers: _Sizes) -> bool:
    return _contexts(layers) == {layer_shapes.UNETS["tiny"].cross_attention_dim}


def _narrow_misfit(layers: _Sizes) -> str:
    """Describe what fits no narrow base either: an unknown layer, or attentions of one level that differ in width.

    Empty where all fits.
    """
    if len(_contexts(layers)) > 1:
        return "its parts read text of several widths"
    for part, size in layers.items():
        if layer_name(part, "tiny", size) not in _names():
            return f"its layer {printable(part.path)} is not in it"
    return _first_uneven(layers, "tiny")


def _first_uneven(layers: _Sizes, base: BaseKind) -> str:
    """Describe the first attention whose width differs from those before it in its level; empty without any."""
    widths: dict[str, int] = {}
    for part, size in layers.items():
        match = _ATTENTION.match(layer_name(part, base, size))
        if match and size.rows and widths.setdefault(match[1], size.rows) != size.rows:
            return f"its layer {printable(part.path)} has {size.rows} rows, where others have {widths[match[1]]}"
    return ""


@functools.cache
def _names() -> frozenset[str]:
    """Return the names that layers of a narrow base can have."""
    unets = (path for unet in layer_shapes.UNETS.values() for path, _ in layer_shapes.unet_shapes(unet))
    return frozenset({*layer_shapes.layer_table("sd2"), *(f"lora_unet_{path}" for path in unets)})
