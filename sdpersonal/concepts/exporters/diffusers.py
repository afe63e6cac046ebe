"""Export for diffusers: an embedding for `load_textual_inversion`, a LoRA for `load_lora_weights`.

Sources: its `loaders/textual_inversion.py` (one tensor under the token), `loaders/lora_base.py` (PEFT's names, and its
settings as JSON under `lora_adapter_metadata`), `examples/textual_inversion/textual_inversion_sdxl.py` (two files).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from ..concept import Concept, Lora, LoraLayer
from ..importers.embeddings import DIFFUSERS_EMBEDDINGS, DIFFUSERS_LORA
from ..importers.peft import PEFT_METADATA
from ..plain_lora import is_possible as plain_is_possible
from ..plain_lora import needs_base, plain_concept
from ..strict_safetensors import serialize
from .export import HUB_MODELS, Export, lora_of, modelspec_header, trigger_words, vectors_of
from .paths import module_path

_Value = TypeVar("_Value", int, float)


def write(concept: Concept) -> Export:
    """Build `learned_embeds.safetensors` (SDXL: and `learned_embeds_2`), `pytorch_lora_weights.safetensors`, or all.

    Raises UserError where diffusers cannot read its LoRA (`is_possible`).
    """
    concept, loss_note = plain_concept(concept)
    word = str(concept.token.unversioned())
    files = {
        DIFFUSERS_EMBEDDINGS[key]: _embedding(concept, word, embeddings) for key, embeddings in concept.vectors.items()
    }
    if concept.lora:
        files[DIFFUSERS_LORA] = _lora(concept, concept.lora)
    notes = [loss_note] if loss_note else []
    if concept.vectors:
        notes.append(f"Load the token before you use it: diffusers keeps {word} in its tokenizer until it is unloaded.")
    return Export(
        program="diffusers",
        files=files,
        destinations={name: "any folder" for name in files},
        trigger_word=trigger_words(concept, word),
        install=("Give this folder to the pipeline:",),
        notes=tuple(notes),
        python=_example_code(concept),
    )


def is_possible(concept: Concept) -> bool:
    """Return whether diffusers can load all that the concept does to layers, except biases and norms."""
    return concept.lora is None or (plain_is_possible(concept.lora) and not needs_base(concept.lora))


def _embedding(concept: Concept, word: str, embeddings: np.ndarray) -> bytes:
    """Serialize one encoder's embedding, (n, dim), always two axes: the loader adds a token for each row."""
    tensors = {word: embeddings}
    return b"".join(serialize(tensors, modelspec_header(vectors_of(concept), tensors, word)))


def _lora(concept: Concept, lora: Lora) -> bytes:
    layers = {module_path(name): layer for name, layer in lora.layers.items()}
    tensors = {}
    for (component, path), layer in layers.items():
        tensors[f"{component}.{path}.lora_A.weight"] = layer.down
        tensors[f"{component}.{path}.lora_B.weight"] = layer.up
    settings: dict[str, object] = {}
    for component in sorted({component for component, _ in layers}):
        config = _lora_config({path: layer for (owner, path), layer in layers.items() if owner == component})
        settings |= {f"{component}.{key}": value for key, value in config.items()}
    metadata = modelspec_header(lora_of(concept), tensors, trigger_words(concept, str(concept.token.unversioned())))
    return b"".join(serialize(tensors, metadata | {PEFT_METADATA: json.dumps(settings, sort_keys=True)}))


def _lora_config(layers: dict[str, LoraLayer]) -> dict[str, object]:
    """Return PEFT's LoraConfig for one model: the commonest rank and alpha, and the layers that differ from them.

    PEFT matches paths by their ends. CLIP's paths are given without `text_model.`, which transformers 5 dropped.
    """
    layers = {path.removeprefix("text_model."): layer for path, layer in layers.items()}
    rank = _most_common(layer.rank for layer in layers.values())
    alpha = _most_common(layer.alpha for layer in layers.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(layers),
        "rank_pattern": {path: layer.rank for path, layer in layers.items() if layer.rank != rank},
        "alpha_pattern": {path: layer.alpha for path, layer in layers.items() if layer.alpha != alpha},
    }


def _most_common(values: Iterable[_Value]) -> _Value:
    return Counter(values).most_common(1)[0][0]


def _example_code(concept: Concept) -> str:
    base = concept.card.base
    lines = ["from diffusers import DiffusionPipeline"]
    lines += ["from sdpersonal.models.loading import built_in_folder"] if base == "tiny" else []
    model = "built_in_folder()" if base == "tiny" else f'"{HUB_MODELS[base]}"'
    lines.append(f"pipe = DiffusionPipeline.from_pretrained({model})")
    if base == "sdxl" and concept.vectors:
        for name, end in ((DIFFUSERS_EMBEDDINGS["clip_l"], ""), (DIFFUSERS_EMBEDDINGS["clip_g"], "_2")):
            lines.append(
                f'pipe.load_textual_inversion(".", weight_name="{name}", '
                f"text_encoder=pipe.text_encoder{end}, tokenizer=pipe.tokenizer{end})"
            )
    elif concept.vectors:
        lines.append(f'pipe.load_textual_inversion(".", weight_name="{DIFFUSERS_EMBEDDINGS["clip_l"]}")')
    if concept.lora:
        lines.append(f'pipe.load_lora_weights(".", weight_name="{DIFFUSERS_LORA}")')
    return "\n".join([*lines, 'pipe({prompt}).images[0].save("picture.png")'])
