"""Pictures with an embedding in them, as A1111's `image_embedding.py` makes them, written anew from its description."""

from __future__ import annotations

import base64
import io
import json
import zlib

import numpy as np
from PIL import Image, PngImagePlugin


def as_json(embedding: dict) -> str:
    """Tensors as {"TORCHTENSOR": nested list}."""
    return json.dumps(embedding, default=lambda tensor: {"TORCHTENSOR": tensor.detach().numpy().tolist()})


def with_chunk(embedding: dict, image: Image.Image) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(as_json(embedding).encode()).decode())
    return png(image, pnginfo=info)


def with_pixels(embedding: dict, image: Image.Image) -> Image.Image:
    """Low and high halves of the compressed bytes in the low four bits of the colours, left and right."""
    packed = np.frombuffer(zlib.compress(as_json(embedding).encode(), 9), np.uint8)
    height = image.height
    width = -(-len(packed) // (3 * height)) + 1
    sides = []
    for half in (packed & 15, packed >> 4):
        block = np.resize(half, height * width * 3).reshape(height, width, 3)
        chance = np.array(list(_random(block.size)), np.uint8).reshape(block.shape)
        style = np.random.default_rng(0).integers(0, 255, block.shape, np.uint8) & 0xF0
        sides.append(block ^ style ^ (chance & 15))
    black = np.zeros((height, 1, 3), np.uint8)
    return Image.fromarray(np.concatenate([sides[0], black, np.asarray(image.convert("RGB")), black, sides[1]], axis=1))


def _random(count: int):
    state = 0
    for _ in range(count):
        state = (1664525 * state + 1013904223) % 2**32
        yield state % 255


def png(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
