"""Export for OneTrainer, which continues training from these files.

Sources: its `modelSetup/BaseStableDiffusionSetup.py` and `BaseStableDiffusionXLSetup.py` (the names of an embedding's
tensors), `util/load_lora_util.py`, `module/LoRAModule.py`: a LoRA must have one rank, every layer of the UNet that the
layer filter names, and every linear layer of a text encoder if it has any.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict

import numpy as np

from ..concept import Concept, Lora, LoraLayer
from ..importers.origin import RANKS
from ..plain_lora import plain_concept
from ..strict_safetensors import serialize
from .export import Export, embedding_file, lora_of, modelspec_header, native_file, trigger_words, vectors_of
from .paths import module_path

_ENCODER_LAYER = re.compile(r"lora_te_text_model_encoder_layers_(\d+)_(.+)")
_LINEAR_LAYERS = {*(f"self_attn_{name}_proj" for name in ("q", "k", "v", "out")), "mlp_fc1", "mlp_fc2"}


def write(concept: Concept) -> Export:
    """Build `embedding/<owner>-<name>.safetensors`, `lora/<owner>-<name>.safetensors`, or both."""
    concept, loss_note = plain_concept(concept)
    slug, word = concept.token.slug, str(concept.token.unversioned())
    files, install, notes = (
        {},
        [],
        ["OneTrainer trains; it generates only samples.", *([loss_note] if loss_note else [])],
    )
    if concept.vectors:
        path = f"embedding/{slug}.safetensors"
        files[path] = _embedding(concept, word)
        install.append(f"Embedding: choose {path} as base embedding, or as an additional one, with placeholder {word}.")
        if concept.card.base != "sdxl":
            notes.append("Only OneTrainer and sdpersonal read that file: its tensor is called emp_params there.")
    if concept.lora and (supported := _supported_layers(concept.lora)):
        path = f"lora/{slug}.safetensors"
        files[path] = _lora(concept, concept.lora, supported)
        install.append(
            f"LoRA: choose {path} as LoRA base model, set LoRA rank to {supported.rank} and layer filter to "
            f"{_layer_filter(supported)}: OneTrainer refuses a LoRA that differs from its settings."
        )
        if len(supported.layers) < len(concept.lora.layers):
            notes.append("Of its LoRA, the text encoder's layers are left out: OneTrainer wants all of them or none.")
    return Export(
        program="OneTrainer",
        files=files,
        destinations={path: "any folder" for path in files},
        trigger_word=trigger_words(concept, word),
        install=tuple(install),
        notes=tuple(notes),
    )


def _embedding(concept: Concept, word: str) -> bytes:
    if concept.card.base == "sdxl":
        return embedding_file(concept)
    tensors = {"emp_params": concept.vectors["clip_l"]}  # OneTrainer spells it so
    return b"".join(serialize(tensors, modelspec_header(vectors_of(concept), tensors, word)))


def _lora(concept: Concept, original: Lora, padded: Lora) -> bytes:
    """Build our own file of the padded layers. It notes their original ranks and alphas for an import to restore."""
    ranks = {
        name: [original.layers[name].rank, original.layers[name].alpha]
        for name, layer in padded.layers.items()
        if layer.rank != original.layers[name].rank
    }
    part = lora_of(concept)
    if len(padded.layers) < len(original.layers):
        part = dataclasses.replace(part, part_of=part.part_of or concept.identity)
    part = dataclasses.replace(part, lora=padded)
    return native_file(part, {RANKS: json.dumps(ranks, sort_keys=True)} if ranks else None)


def _supported_layers(lora: Lora) -> Lora | None:
    """Return the layers that OneTrainer reads, all padded to the largest rank; None if it reads none."""
    encoder = defaultdict(set)
    for name in lora.layers:
        if match := _ENCODER_LAYER.fullmatch(name):
            encoder[int(match[1])].add(match[2])
    complete = sorted(encoder) == [*range(len(encoder))] and all(names == _LINEAR_LAYERS for names in encoder.values())
    starts = ("lora_unet_", "lora_te_") if complete else ("lora_unet_",)  # SDXL's encoder needs its last projection too
    layers = {name: layer for name, layer in lora.layers.items() if name.startswith(starts)}
    rank = max((layer.rank for layer in layers.values()), default=0)
    return Lora({name: _pad_to_rank(layer, rank) for name, layer in layers.items()}) if layers else None


def _pad_to_rank(layer: LoraLayer, rank: int) -> LoraLayer:
    """Return the same change with matrices padded with zeros."""
    missing = rank - layer.rank
    if not missing:
        return layer
    down = np.pad(layer.down, [(0, missing)] + [(0, 0)] * (layer.down.ndim - 1))
    up = np.pad(layer.up, [(0, 0), (0, missing)] + [(0, 0)] * (layer.up.ndim - 2))
    return LoraLayer(down, up, layer.alpha * rank / layer.rank)


def _layer_filter(lora: Lora) -> str:
    """Return the LoRA's UNet layers as OneTrainer selects them: by parts of their paths."""
    paths = [path for component, path in map(module_path, lora.layers) if component == "unet"]
    if any("resnets." in path or "samplers." in path for path in paths):
        return "attentions,resnets,samplers"
    return "attentions" if any("attn" not in path for path in paths) else "attn1,attn2"
