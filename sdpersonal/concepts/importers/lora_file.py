"""Read a LoRA, or another change of layers, from one file with the names of kohya, LyCORIS, diffusers or PEFT.

Bundled embeddings are `bundle_emb.<NAME>.<KEY>`: KEY is `string_to_param.*` (A1111), or `clip_l` and `clip_g`, where
OneTrainer has `clip_l` for SD 1.x too. Sources: A1111 `extensions-builtin/Lora/networks.py`, OneTrainer
`modules/modelSaver/stableDiffusion/StableDiffusionLoRASaver.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from ...errors import UserError, printable
from ...prompts import Token
from ..concept import Concept, Lora, LoraLayer
from ..layer_changes import PLAIN, SUFFIXES, Change, find_problem, weight_size
from ..layer_changes import fits as change_fits
from ..strict_safetensors import damaged_file_error
from . import peft
from .contents import FileContents
from .detect_base import LayerPath, WeightSize, base_of_layers, layer_name
from .layer_shapes import Shape, has_bias, layer_table
from .lora_keys import TensorKey, parse_key
from .to_concept import base_from_widths, make_concept

_Config = Mapping[str, object]
_MAX_LAYERS = 4096  # Stable Diffusion XL has 1,406
_BUNDLE = "bundle_emb."
_ENCODER = {"clip_l": "clip_l", "clip_g": "clip_g", "emb_params": "clip_l"}
_TensorNames = dict[str, tuple[str, str]]  # the tensor's name in `layer_changes` -> its name in the file, module's path


def fits(content: FileContents) -> bool:
    return any(_parse_key(key, content) for key in content.shapes)


def read(content: FileContents, token: Token | None = None, configs: Mapping[str, _Config] | None = None) -> Concept:
    """Convert the contents to a concept. Raises UserError.

    configs: PEFT's configuration of each component, if not in the header.
    """
    for config in (configs or {}).values():
        peft.refuse_variants(config, content.name)
    parts, bundles = _group_by_layer(content)
    layers = {part: _read_layer(content, part, names, configs or {}) for part, names in parts.items()}
    sizes = {part: _outline(layer) for part, layer in layers.items()}
    base = base_of_layers(sizes, content)
    lora = Lora({}, {})
    for part, layer in layers.items():
        name = layer_name(part, base, sizes[part])
        if name in lora.layers or name in lora.changes:
            raise damaged_file_error(content.name, f"layer {printable(name)} appears twice")
        if isinstance(layer, LoraLayer):
            lora.layers[name] = layer
            continue
        if not has_bias(name) and "diff_b" in layer:
            raise damaged_file_error(content.name, f"it changes a bias, and layer {printable(name)} has none")
        if not _fits_weight(layer, sizes[part], layer_table(base).get(name)):
            raise damaged_file_error(
                content.name, f"its change of layer {printable(name)} does not fit a weight of its shape"
            )
        lora.changes[name] = layer
    word, vectors = _read_bundle(content, bundles)
    if (
        vectors
        and (other_base := base_from_widths({key: array.shape[1] for key, array in vectors.items()}, content.name))
        != base
    ):
        raise UserError(f"{printable(content.name)} bundles a LoRA for {base} with vectors for {other_base}.")
    return make_concept(content, base, vectors, lora, token, word)


def _parse_key(key: str, content: FileContents) -> TensorKey | None:
    parsed = parse_key(key)
    if parsed and parsed.tensor == "weight" and f"{key.removesuffix('.weight')}.on_input" not in content.shapes:
        return None  # a whole weight: only IA3's `weight` is a change
    return parsed


def _group_by_layer(content: FileContents) -> tuple[dict[LayerPath, _TensorNames], list[str]]:
    """Return the tensors' names by layer, and those of bundled embeddings. Raises UserError where there are others."""
    layers: dict[LayerPath, _TensorNames] = {}
    bundles, unknown = [], []
    for key in content.shapes:
        if key.startswith(_BUNDLE):
            bundles.append(key)
        elif parsed := _parse_key(key, content):
            names = layers.setdefault(parsed.layer, {})
            if len(layers) > _MAX_LAYERS:
                raise damaged_file_error(content.name, f"it changes more than {_MAX_LAYERS:,} layers")
            if parsed.tensor in names:
                layer_and_tensor = f"{parsed.tensor} of layer {printable(parsed.layer.path)}"
                raise damaged_file_error(content.name, f"{layer_and_tensor} appears twice")
            names[parsed.tensor] = (key, parsed.module)
        else:
            unknown.append(key)
    if unknown:
        raise damaged_file_error(content.name, f"it has unknown tensors {printable(', '.join(unknown[:3]), 200)}")
    return layers, bundles


def _read_layer(
    content: FileContents, part: LayerPath, names: _TensorNames, configs: Mapping[str, _Config]
) -> LoraLayer | Change:
    tensors = {piece: content.load_tensor(key) for piece, (key, _) in names.items()}
    for piece, other in (("lora_down.weight", "lora_up.weight"), ("lora_up.weight", "lora_down.weight")):
        if piece in tensors and other not in tensors:
            raise damaged_file_error(content.name, f"layer {printable(part.path)} lacks its {other}")
    path = next(path for _, path in names.values())
    if path:
        tensors = peft.convert_tensors(tensors, _peft_config(part, configs), path, content.name)
    for key in tensors.keys() - SUFFIXES:
        raise damaged_file_error(content.name, f"{key} of layer {printable(part.path)} belongs to no known format")
    if "lora_up.weight" not in tensors or not tensors.keys() <= PLAIN:
        if "alpha" in tensors:
            tensors["alpha"] = tensors["alpha"].astype(np.float32)
        if wrong := find_problem(tensors):
            raise damaged_file_error(content.name, f"of layer {printable(part.path)}, {wrong}")
        return tensors
    return _plain(content, part, tensors)


def _plain(content: FileContents, part: LayerPath, tensors: Change) -> LoraLayer:
    down, up = tensors["lora_down.weight"], tensors["lora_up.weight"]
    if min(down.ndim, up.ndim) < 2:
        raise damaged_file_error(content.name, f"layer {printable(part.path)} has shapes {down.shape} and {up.shape}")
    alpha = tensors.get("alpha", np.zeros(()))
    if alpha.size != 1:
        raise damaged_file_error(content.name, f"the alpha of layer {printable(part.path)} is not one number")
    # kohya's rule: an alpha of 0 is the rank. PEFT's 0 has made `up` zeros, so that nobody takes it for the rank.
    return LoraLayer(down, up, float(alpha.reshape(())) or (float(len(down)) if up.any() else 0.0))


def _outline(layer: LoraLayer | Change) -> WeightSize:
    if isinstance(layer, LoraLayer):
        return WeightSize(len(layer.up), layer.down[0].size, layer.down.ndim)
    return WeightSize(*weight_size(layer))


def _fits_weight(change: Change, size: WeightSize, shape: Shape | None) -> bool:
    """Return whether the change fits the weight, beyond the outline, which was checked already.

    A weight may have other widths than the table: layers that read other inputs, and narrower bases, are in none.
    """
    if shape is None or size.rows not in (0, shape[0]) or size.width not in (0, math.prod(shape[1:])):
        return True
    return change_fits(change, shape)


def _peft_config(part: LayerPath, configs: Mapping[str, _Config]) -> _Config | None:
    names = {"te2": ("text_encoder_2",), "text_encoder": ("text_encoder",), "unet": ("unet",)}.get(part.component, ())
    return next((configs[name] for name in (*names, "") if name in configs), None)


def _read_bundle(content: FileContents, keys: Iterable[str]) -> tuple[str, dict[str, np.ndarray]]:
    """Return the bundled embedding's name and vectors; both empty without one."""
    vectors: dict[str, dict[str, np.ndarray]] = {}
    for key in keys:
        word, _, kind = key.removeprefix(_BUNDLE).partition(".")
        encoder = "clip_l" if kind.startswith("string_to_param.") else _ENCODER.get(kind)
        if not word or encoder is None or encoder in vectors.get(word, ()):
            raise damaged_file_error(content.name, f"it has an unknown tensor {printable(key)}")
        vectors.setdefault(word, {})[encoder] = content.embeddings(key)
    if len(vectors) > 1:
        names = printable(", ".join(vectors), 200)
        raise UserError(
            f"{printable(content.name)} bundles several embeddings ({names}); a concept has one token.",
            "Ask its author for the LoRA and the embeddings as separate files.",
        )
    return next(iter(vectors.items()), ("", {}))
