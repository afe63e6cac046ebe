"""Read OneTrainer's embeddings for SD 1.x and 2.x: `emp_params` (its spelling). For SDXL it writes `clip_l`, `clip_g`.

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

RANKS = "sdpersonal.ranks"  # in our exports: the rank and alpha of layers before they were padded to one rank
_KEY = "emp_params"


def fits(content: FileContents) -> bool:
    return content.shapes.keys() == {_KEY}


def read(content: FileContents, token: Token | None = None) -> Concept:
    """Convert the contents to a concept. Raises UserError."""
    vectors = content.embeddings(_KEY)
    return make_concept(
        content, base_from_widths({"clip_l": vectors.shape[1]}, content.name), {"clip_l": vectors}, None, token
    )


def restored(concept: Concept, notes: Mapping[str, str]) -> Concept:
    """Restore the ranks that our LoRA had before an export for OneTrainer padded its layers with zeros."""
    try:
        ranks = parse_strict_json(notes.get(RANKS, "{}"))
    except ValueError:
        return concept
    if concept.lora is None or not isinstance(ranks, dict) or not ranks:
        return concept
    layers = {name: _cut(layer, ranks.get(name)) for name, layer in concept.lora.layers.items()}
    return dataclasses.replace(concept, lora=dataclasses.replace(concept.lora, layers=layers))


def _cut(layer: LoraLayer, was: object) -> LoraLayer:
    """Cut the layer to the noted [rank, alpha] where what is cut off is zero; else return it unchanged."""
    match was:
        case [int(rank), float(alpha)] if 0 < rank < layer.rank and not layer.down[rank:].any():
            return LoraLayer(layer.down[:rank].copy(), layer.up[:, :rank].copy(), alpha)
    return layer
