"""A LoRA in one file, named as kohya's, diffusers' or PEFT's tools do, with the embedding that it may bundle.

Bundled embeddings are `bundle_emb.<NAME>.<KEY>`: KEY is `string_to_param.*` (A1111), or `clip_l` and `clip_g`, where
OneTrainer has `clip_l` for SD 1.x too. Sources: A1111 `extensions-builtin/Lora/networks.py`, OneTrainer
`modules/modelSaver/stableDiffusion/StableDiffusionLoRASaver.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..concept import Concept, Lora, LoraLayer
from ..errors import PersonalError
from ..prompts import Token, show
from ..tensorfile import damaged
from . import diffusers_lora, kohya
from .content import Content
from .kinds import Part, base_of_lora
from .layers import unet_name
from .making import base_of, made

_BUNDLE = "bundle_emb."
_ENCODER = {"clip_l": "clip_l", "clip_g": "clip_g", "emb_params": "clip_l"}
_Names = dict[str, tuple[str, str]]  # "down", "up" or "alpha" -> tensor's name, module's path


def fits(content: Content) -> bool:
    return any(_parsed(key) for key in content.shapes)


def read(content: Content, token: Token | None = None, adapters: Mapping[str, dict] | None = None) -> Concept:
    """The concept. adapters: PEFT's configuration of each component, if not in the header. Raises PersonalError."""
    for adapter in (adapters or {}).values():
        diffusers_lora.refuse_variants(adapter, content.name)
    layers, bundles = _sorted(content)
    arrays = {part: _layer(content, part, names, adapters or {}) for part, names in layers.items()}
    base = base_of_lora({part: layer.down for part, layer in arrays.items()}, content)
    named: dict[str, LoraLayer] = {}
    for part, layer in arrays.items():
        name = layer_name(part, base, layer.down.shape[1])
        if name in named:
            raise damaged(content.name, f"layer {show(name)} stands in it twice")
        named[name] = layer
    word, vectors = _bundle(content, bundles)
    if vectors and (other := base_of({key: rows.shape[1] for key, rows in vectors.items()}, content.name)) != base:
        raise PersonalError(f"{show(content.name)} bundles a LoRA for {base} with vectors for {other}.")
    return made(content, base, vectors, Lora(named), token, word)


def _parsed(key: str) -> tuple[Part, str, str] | None:
    return kohya.parsed(key) or diffusers_lora.parsed(key)


def _sorted(content: Content) -> tuple[dict[Part, _Names], list[str]]:
    """The tensors' names by layer, and those of bundled embeddings. Raises PersonalError where there are others."""
    layers: dict[Part, _Names] = {}
    bundles, strangers = [], []
    for key in content.shapes:
        if key.startswith(_BUNDLE):
            bundles.append(key)
        elif found := _parsed(key):
            part, piece, path = found
            names = layers.setdefault(part, {})
            if piece in names:
                raise damaged(content.name, f"{piece} of layer {show(part.flat)} stands in it twice")
            names[piece] = (key, path)
        else:
            strangers.append(key)
    if strangers:
        raise damaged(content.name, f"I do not know its tensors {show(', '.join(strangers[:3]), 200)}")
    return layers, bundles


def _layer(content: Content, part: Part, names: _Names, adapters: Mapping[str, dict]) -> LoraLayer:
    for piece in ("down", "up"):
        if piece not in names:
            raise damaged(content.name, f"layer {show(part.flat)} lacks its {piece}")
    (key, path), (up_key, _) = names["down"], names["up"]
    down, up = content.numbers(key), content.numbers(up_key)
    if min(down.ndim, up.ndim) < 2:
        raise damaged(content.name, f"layer {show(part.flat)} has shapes {down.shape} and {up.shape}")
    rank = down.shape[0]
    if "alpha" in names:
        number = content.numbers(names["alpha"][0])
        if number.size != 1:
            raise damaged(content.name, f"the alpha of layer {show(part.flat)} is not one number")
        alpha = float(number.reshape(()))
    else:
        alpha = diffusers_lora.alpha_of(_adapter(part, adapters), path, rank, content.name)
    return LoraLayer(down, up, alpha or float(rank))  # kohya's rule: an alpha of 0 is the rank


def _adapter(part: Part, adapters: Mapping[str, dict]) -> dict:
    names = {"te2": ("text_encoder_2",), "text_encoder": ("text_encoder",), "unet": ("unet",)}.get(part.component, ())
    return next((adapters[name] for name in (*names, "") if name in adapters), {})


def layer_name(part: Part, base: str, width: int = 0) -> str:
    """The layer's name in a concept for that base; width: of what the layer reads."""
    if part.component == "unet":
        return f"lora_unet_{unet_name(part.flat, base)}"
    if base != "sdxl":
        return f"lora_te_{part.flat}"
    first = part.component in ("te", "te1", "text_encoder")
    if part.component == "text":  # PEFT alone does not say of which encoder; SDXL's differ in width
        first = width in (768, 3072)
    return f"lora_te{1 if first else 2}_{part.flat}"


def _bundle(content: Content, keys: Iterable[str]) -> tuple[str, dict[str, np.ndarray]]:
    """The bundled embedding's name and vectors; both empty without one."""
    vectors: dict[str, dict[str, np.ndarray]] = {}
    for key in keys:
        word, _, kind = key.removeprefix(_BUNDLE).partition(".")
        encoder = "clip_l" if kind.startswith("string_to_param.") else _ENCODER.get(kind)
        if not word or encoder is None or encoder in vectors.get(word, ()):
            raise damaged(content.name, f"I do not know its tensor {show(key)}")
        vectors.setdefault(word, {})[encoder] = content.rows(key)
    if len(vectors) > 1:
        names = show(", ".join(vectors), 200)
        raise PersonalError(
            f"{show(content.name)} bundles several embeddings ({names}); a concept has one token.",
            "Ask its author for the LoRA and the embeddings as separate files.",
        )
    return next(iter(vectors.items()), ("", {}))
