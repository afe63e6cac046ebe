"""Which base a LoRA was made for: told by its tensors; a file's words count only where the tensors fit two."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import PersonalError
from ..prompts import show
from .content import Content

_CONTEXT = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # width of the text that the cross attentions read
_TEXT = {768: "sd1", 1024: "sd2"}
_NARROW = 512
_FULL_WIDTH = 320  # of the first level of every Stable Diffusion
# Where a UNet of three levels, the first without attention, has nothing.
_FOUR_LEVELS = re.compile(
    r"(down|up)_blocks_3_|down_blocks_0_attentions|up_blocks_2_attentions|input_blocks_([12]_1|9|10|11)_|"
    r"output_blocks_([678]_1|9|10|11)_"
)


@dataclass(frozen=True)
class Part:
    """Where one layer is: component "unet", "te", "te1", "te2" or "text" (one of the two), path with `_` for `.`."""

    component: str
    flat: str


def base_of_lora(downs: Mapping[Part, np.ndarray], content: Content) -> str:
    """sd1, sd2, sdxl or tiny, from every layer's down matrix (r, in, ...). Raises PersonalError."""
    if any(part.component == "te2" for part in downs):
        return "sdxl"
    unet = {part.flat: down for part, down in downs.items() if part.component == "unet"}
    contexts = {down.shape[1] for flat, down in unet.items() if flat.endswith(("attn2_to_k", "attn2_to_v"))}
    if contexts:
        base = _known(contexts, _CONTEXT)
    elif any("transformer_blocks_1_" in flat for flat in unet):
        base = "sdxl"  # the others have one in a row
    else:
        base = _by_other_layers(downs, unet, content)
    if contexts and base != "sdxl" and (texts := _text_widths(downs)) and _known(texts, _TEXT) != base:
        base = None  # its parts are for two bases
    if base is None:
        raise PersonalError(
            f"{show(content.name)} was made for another model than Stable Diffusion 1.x, 2.x or XL.",
            "I have no base that it fits.",
        )
    return base


def _known(widths: set[int], table: Mapping[int, str]) -> str | None:
    if len(widths) != 1:
        return None
    [width] = widths
    return table.get(width, "tiny" if width <= _NARROW else None)


def _by_other_layers(downs: Mapping[Part, np.ndarray], unet: Mapping[str, np.ndarray], content: Content) -> str | None:
    texts, said = _text_widths(downs), _said(content)
    if said == "sdxl" and (any(part.component == "te" for part in downs) or any(map(_FOUR_LEVELS.match, unet))):
        said = None  # as kohya names them; SDXL's UNet has three levels
    if texts and said == "sdxl":
        return said
    if texts:
        return _known(texts, _TEXT)
    first = [down for flat, down in unet.items() if flat.startswith(("down_blocks_0_attentions", "up_blocks_3_"))]
    if first and all(down.shape[1] < _FULL_WIDTH for down in first):
        return "tiny"
    if any(flat.endswith(("proj_in", "proj_out")) and down.ndim == 4 for flat, down in unet.items()):
        return "sd1"  # 2.x has matrices there
    if said:
        return said
    raise PersonalError(
        f"{show(content.name)} changes only layers that Stable Diffusion 1.x, 2.x and XL may share.",
        "Ask its author for a file that says for which base it was made.",
    )


def _text_widths(downs: Mapping[Part, np.ndarray]) -> set[int]:
    return {
        down.shape[1]
        for part, down in downs.items()
        if part.component != "unet" and part.flat.endswith(("q_proj", "k_proj", "v_proj", "fc1"))
    }


def _said(content: Content) -> str | None:
    version = content.fact("ss_base_model_version") or content.fact("modelspec.architecture")
    if version.startswith(("sdxl", "stable-diffusion-xl")):
        return "sdxl"
    if content.fact("ss_v2") == "True" or version.startswith(("sd_v2", "stable-diffusion-v2")):
        return "sd2"
    return "sd1" if version.startswith(("sd_v1", "stable-diffusion-v1")) or content.fact("ss_v2") == "False" else None
