"""Concepts that say something in every layer that could be trained, for narrow models of every kind."""

from __future__ import annotations

import numpy as np
import torch

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import EMBEDDING_WIDTHS, Concept, Lora, LoraLayer
from sdpersonal.models.loading import built_in_folder
from sdpersonal.models.loading.ldm_keys import unet_paths
from sdpersonal.models.lora import LoraAdapters
from sdpersonal.models.stable_diffusion import text_encoder_path
from sdpersonal.prompts import Token
from support import original
from support.samples import thumbnail

BASES = ("sd1", "sd2", "sdxl")


def make_pipeline(base: str):
    """diffusers' pipeline of that kind with narrow layers and random weights."""
    from transformers import CLIPTokenizer

    ours = built_in_folder() / "tokenizer"
    tokenizers = [CLIPTokenizer.from_pretrained(ours)]
    tokenizers += [CLIPTokenizer.from_pretrained(ours, pad_token="!")] if base == "sdxl" else []
    return original.pipeline(base, tokenizers)


def models(base: str, table=original.NARROW) -> dict[str, torch.nn.Module]:
    """unet, text_encoder and so on; shapes only."""
    with torch.device("meta"):
        return original.models(base, table)


def adapters(base: str, parts: dict[str, torch.nn.Module]) -> LoraAdapters:
    """The layers of those models by their kohya names."""
    if base != "sdxl":
        models = {"lora_unet": parts["unet"], "lora_te": parts["text_encoder"]}
        return LoraAdapters(models, naming={"lora_te": text_encoder_path})
    models = {"lora_unet": parts["unet"], "lora_te1": parts["text_encoder"], "lora_te2": parts["text_encoder_2"]}
    naming = {
        "lora_unet": unet_paths(parts["unet"]).__getitem__,
        "lora_te1": text_encoder_path,
        "lora_te2": text_encoder_path,
    }
    return LoraAdapters(models, naming)


def make_lora(base: str, parts=None, targets="all", dtype=np.float32, even=False, every=1, seed=0) -> Lora:
    """Ranks 1 to 3 and alphas of all sizes; even: the same in all layers; every: n for each n-th layer alone."""
    draw = np.random.default_rng(seed)
    places = adapters(base, parts or models(base))
    modules = places.layers()
    layers = {}
    for name in places.layer_names(targets, text_encoder=True)[::every]:
        shape = tuple(modules[name].weight.shape)
        rank = 2 if even else int(draw.integers(1, 4))
        down = draw.normal(0, 0.1, (rank, *shape[1:])).astype(dtype)
        up = draw.normal(0, 0.1, (shape[0], rank, *(1 for _ in shape[2:]))).astype(dtype)
        layers[name] = LoraLayer(down, up, 1.0 if even else float(draw.choice([0.5, 1, 2.5, 4])))
    return Lora(layers)


def rows(base: str, count: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        key: draw.normal(0, 0.02, (count, width)).astype(np.float32) for key, width in EMBEDDING_WIDTHS[base].items()
    }


def full_concept(base: str, holds: str = "both", **lora) -> Concept:
    """<me/toy-duck-v3>, which holds "vectors", "lora" or "both"."""
    card = Card(base=base, title="Toy duck", created="2026-01-31T12:00:00Z", class_noun="duck", license="CC-BY-4.0")
    return Concept(
        Token("me", "toy-duck", 3),
        card,
        rows(base) if holds != "lora" else {},
        make_lora(base, **lora) if holds != "vectors" else None,
        thumbnail(),
    )


def change(layer: LoraLayer) -> np.ndarray:
    """What the layer adds to its weight, as a matrix (out, in * k * k), float64."""
    down, up = (item.reshape(item.shape[0], -1).astype(np.float64) for item in (layer.down, layer.up))
    return up @ down * (layer.alpha / layer.rank)
