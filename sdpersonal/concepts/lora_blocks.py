"""Apply block weights to a concept's LoRA: find the block of each layer, and scale the layers.

Layers have diffusers' names or the original's (`importers.layers`), SDXL's included. The levels of a smaller UNet, such
as the built-in one's, take the numbers of the same levels of Stable Diffusion.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..prompts import BlockWeights
from .concept import Lora

_DIFFUSERS = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_")
_ORIGINAL = re.compile(r"lora_unet_(input|output)_blocks_(\d+)_")
_BLOCKS_PER_LEVEL = 3  # of Stable Diffusion: two resnets and a downsampler, or three resnets
_MAX_BLOCK = 11


def block_of(layer: str) -> str | None:
    """Return the block of a concept's layer, a name in `prompts.block_weights.BLOCKS`.

    None for the UNet's layers that are in no block: the time embedding, SDXL's size embedding, the output's.
    """
    if not layer.startswith("lora_unet_"):
        return "BASE"
    if layer.startswith(("lora_unet_mid_block_", "lora_unet_middle_block_")):
        return "MID"
    if layer.startswith("lora_unet_conv_in"):
        return "IN00"
    if original := _ORIGINAL.match(layer):
        return _block(original[1] == "input", int(original[2]))
    if part := _DIFFUSERS.match(layer):
        first = int(part[2]) * _BLOCKS_PER_LEVEL
        if part[1] == "down":
            return _block(True, first + (3 if part[3] == "downsamplers" else 1 + int(part[4])))
        return _block(False, first + (2 if part[3] == "upsamplers" else int(part[4])))
    return None


def _block(down: bool, number: int) -> str | None:
    return f"{'IN' if down else 'OUT'}{number:02}" if number <= _MAX_BLOCK else None


def with_block_weights(lora: Lora, blocks: BlockWeights) -> Lora:
    """Return the LoRA with its layers scaled by their blocks' weights, without those of weight 0.

    As in A1111's LoRA Block Weight, layers that are in no block stay as they are.
    """
    weights = {name: _weight(name, blocks) for name in (*lora.layers, *lora.changes)}
    layers = {
        name: replace(layer, alpha=layer.alpha * weights[name]) for name, layer in lora.layers.items() if weights[name]
    }
    changes = {name: change for name, change in lora.changes.items() if weights[name]}
    factors = {name: lora.change_factors.get(name, 1.0) * weights[name] for name in changes}
    return Lora(layers, changes, factors)


def _weight(layer: str, blocks: BlockWeights) -> float:
    block = block_of(layer)
    return 1.0 if block is None else blocks[block]
