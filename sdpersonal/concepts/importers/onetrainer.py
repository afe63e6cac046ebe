"""OneTrainer's embeddings for SD 1.x and 2.x: `emp_params` (as they spell it). For SDXL it writes `clip_l`, `clip_g`.

Source: OneTrainer `modules/modelSaver/stableDiffusion/StableDiffusionEmbeddingSaver.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ...prompts import Token
from ..concept import Concept, LoraLayer
from ..strict_safetensors import parse_strict_json
from .contents import FileContents
from .to_concept import base_from_widths, make_concept

RANKS = "sdpersonal.ranks"  # in an export of ours: the rank and alpha of layers before all were made of one rank
_KEY = "emp_params"


def fits(content: FileContents) -> bool:
    return content.shapes.keys() == {_KEY}


def read(content: FileContents, token: Token | None = None) -> Concept:
    """The concept. Raises UserError."""
    rows = content.rows(_KEY)
    return make_concept(
        content, base_from_widths({"clip_l": rows.shape[1]}, content.name), {"clip_l": rows}, None, token
    )


def restored(concept: Concept, notes: Mapping[str, str]) -> Concept:
    """Our own LoRA with the ranks that it had before an export for OneTrainer filled its layers up with zeros."""
    try:
        ranks = parse_strict_json(notes.get(RANKS, "{}"))
    except ValueError:
        return concept
    if concept.lora is None or not isinstance(ranks, dict) or not ranks:
        return concept
    layers = {name: _cut(layer, ranks.get(name)) for name, layer in concept.lora.layers.items()}
    return dataclasses.replace(concept, lora=dataclasses.replace(concept.lora, layers=layers))


def _cut(layer: LoraLayer, was: object) -> LoraLayer:
    """The layer with [rank, alpha] as noted, where what is cut off is zero; else as it is."""
    match was:
        case [int(rank), float(alpha)] if 0 < rank < layer.rank and not layer.down[rank:].any():
            return LoraLayer(layer.down[:rank].copy(), layer.up[:, :rank].copy(), alpha)
    return layer
