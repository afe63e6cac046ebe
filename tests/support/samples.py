"""Small concepts for tests: real layouts, few numbers."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.concepts.thumbnail import make_thumbnail
from sdpersonal.prompts import Token

WHEN = "2026-01-31T12:00:00Z"
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
LAYERS = (LAYER, LAYER.replace("to_q", "to_k"))


def card(**fields) -> Card:
    return Card(**({"base": "tiny", "created": WHEN, "title": "Toy duck", "class_noun": "duck"} | fields))


def vectors(seed: int = 0, rows: int = 2, width: int = 192) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def lora(seed: int = 0, rank: int = 4, dtype=np.float32, names=LAYERS) -> Lora:
    draw = np.random.default_rng(seed)
    return Lora(
        {
            name: LoraLayer(
                draw.normal(size=(rank, 32)).astype(dtype), draw.normal(size=(16, rank)).astype(dtype), float(rank) / 2
            )
            for name in names
        }
    )


@functools.cache
def thumbnail() -> bytes:
    return make_thumbnail(Image.radial_gradient("L"))


def concept(token: str = "<me/duck>", seed: int = 0, **fields) -> Concept:
    """An embedding and a LoRA for the built-in base, unless `fields` say otherwise."""
    parts = {"card": card(), "vectors": {"clip_l": vectors(seed)}, "lora": lora(seed), "thumbnail": thumbnail()}
    return Concept(Token.parse(token), **(parts | fields))


def embedding(token: str = "<me/duck>", seed: int = 0) -> Concept:
    return concept(token, seed, lora=None, thumbnail=None)
