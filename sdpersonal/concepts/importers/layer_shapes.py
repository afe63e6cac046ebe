"""List every layer of Stable Diffusion 1.x, 2.x, XL and the built-in base that a LoRA can change, and its shape.

The tables follow from a few numbers of each architecture. A file whose layers are not in its base's table, or have
other widths there, fits no such base. Sources: the `config.json` files of the published models (channels, depths,
widths) and diffusers' `UNet2DConditionModel`; tests compare the tables with modules that diffusers and transformers
build from those numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from ...config.base import BaseKind
from .layers import unet_name

Shape = tuple[int, ...]

IN_CHANNELS = (4, 5, 8, 9)  # of `conv_in`: plain, with depth, for instructions and for inpainting
_UNBIASED = ("to_q", "to_k", "to_v")


@dataclass(frozen=True)
class UnetShape:
    """The numbers in which UNets differ.

    block_out_channels: channels of each level; transformer_layers: transformer blocks in a row at each level, 0 without
    attention; mid_transformer_layers: the same in the middle; cross_attention_dim: width of the text; layers_per_block:
    resnets of each level on the way down, one more on the way up; use_linear_projection: `proj_in` and `proj_out` are
    linear layers; added_embeds_dim: width of what SDXL's `add_embedding` reads.
    """

    block_out_channels: tuple[int, ...]
    transformer_layers: tuple[int, ...]
    mid_transformer_layers: int
    cross_attention_dim: int
    layers_per_block: tuple[int, ...] = (2, 2, 2, 2)
    use_linear_projection: bool = True
    channels: int = 4
    added_embeds_dim: int = 0


@dataclass(frozen=True)
class TextEncoderShape:
    """One CLIP text encoder."""

    width: int
    layers: int


UNETS: dict[BaseKind, UnetShape] = {
    "sd1": UnetShape((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, use_linear_projection=False),
    "sd2": UnetShape((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 1024),
    "sdxl": UnetShape((320, 640, 1280), (0, 2, 10), 10, 2048, added_embeds_dim=2816),
    "tiny": UnetShape((48, 96, 224), (0, 1, 0), 1, 192, layers_per_block=(1, 2, 1), channels=8),
}
TEXTS: dict[BaseKind, dict[str, TextEncoderShape]] = {
    "sd1": {"te": TextEncoderShape(768, 12)},
    "sd2": {"te": TextEncoderShape(1024, 24)},  # diffusers drops the last layer, which nothing reads
    "sdxl": {"te1": TextEncoderShape(768, 12), "te2": TextEncoderShape(1280, 32)},
    "tiny": {"te": TextEncoderShape(192, 4)},
}


@functools.cache
def layer_table(base: BaseKind) -> dict[str, Shape]:
    """Return shapes by the layers' names in a concept: (out, in[, k, k]), of norms (n,)."""
    shapes = {f"lora_unet_{unet_name(path, base)}": shape for path, shape in unet_shapes(UNETS[base])}
    for encoder, text in TEXTS[base].items():
        shapes |= {f"lora_{encoder}_text_model_{path}": shape for path, shape in text_shapes(text)}
        shapes[f"lora_{encoder}_text_projection"] = (text.width, text.width)
    return shapes


def has_bias(name: str) -> bool:
    """Return whether the layer of that name has a bias."""
    if name.endswith("text_projection"):
        return False
    return not (name.startswith("lora_unet_") and name.endswith(_UNBIASED))


def unet_shapes(unet: UnetShape) -> Iterator[tuple[str, Shape]]:
    """Yield (diffusers' path with `_` for `.`, shape) of every layer."""
    first, time = unet.block_out_channels[0], 4 * unet.block_out_channels[0]
    yield "conv_in", (first, unet.channels, 3, 3)
    yield from (("time_embedding_linear_1", (time, first)), ("time_embedding_linear_2", (time, time)))
    if unet.added_embeds_dim:
        yield from (("add_embedding_linear_1", (time, unet.added_embeds_dim)), ("add_embedding_linear_2", (time, time)))
    yield from _down(unet, time)
    last = unet.block_out_channels[-1]
    yield from _resnet("mid_block_resnets_0", last, last, time)
    yield from _transformer("mid_block_attentions_0", last, unet.mid_transformer_layers, unet)
    yield from _resnet("mid_block_resnets_1", last, last, time)
    yield from _up(unet, time)
    yield from (("conv_norm_out", (first,)), ("conv_out", (unet.channels, first, 3, 3)))


def text_shapes(text: TextEncoderShape) -> Iterator[tuple[str, Shape]]:
    """Yield the same for a text encoder, without the leading `text_model_`."""
    width = text.width
    for number in range(text.layers):
        layer = f"encoder_layers_{number}"
        yield from ((f"{layer}_self_attn_{which}_proj", (width, width)) for which in ("q", "k", "v", "out"))
        yield from ((f"{layer}_mlp_fc1", (4 * width, width)), (f"{layer}_mlp_fc2", (width, 4 * width)))
        yield from ((f"{layer}_layer_norm{i}", (width,)) for i in (1, 2))
    yield "final_layer_norm", (width,)


def _down(unet: UnetShape, time: int) -> Iterator[tuple[str, Shape]]:
    before = unet.block_out_channels[0]
    for level, width in enumerate(unet.block_out_channels):
        block = f"down_blocks_{level}"
        for number in range(unet.layers_per_block[level]):
            yield from _resnet(f"{block}_resnets_{number}", before, width, time)
            if unet.transformer_layers[level]:
                yield from _transformer(f"{block}_attentions_{number}", width, unet.transformer_layers[level], unet)
            before = width
        if level < len(unet.block_out_channels) - 1:
            yield f"{block}_downsamplers_0_conv", (width, width, 3, 3)


def _up(unet: UnetShape, time: int) -> Iterator[tuple[str, Shape]]:
    """Yield the layers of the up blocks, whose resnets also read the skip connections of the down blocks."""
    widths, depths = unet.block_out_channels[::-1], unet.transformer_layers[::-1]
    layers = unet.layers_per_block[: len(widths)][::-1]
    before = widths[0]
    for level, width in enumerate(widths):
        block, above = f"up_blocks_{level}", widths[min(level + 1, len(widths) - 1)]
        for number in range(layers[level] + 1):
            skip = above if number == layers[level] else width
            yield from _resnet(f"{block}_resnets_{number}", before + skip, width, time)
            if depths[level]:
                yield from _transformer(f"{block}_attentions_{number}", width, depths[level], unet)
            before = width
        if level < len(widths) - 1:
            yield f"{block}_upsamplers_0_conv", (width, width, 3, 3)


def _resnet(path: str, reads: int, width: int, time: int) -> Iterator[tuple[str, Shape]]:
    yield from ((f"{path}_norm1", (reads,)), (f"{path}_conv1", (width, reads, 3, 3)))
    yield f"{path}_time_emb_proj", (width, time)
    yield from ((f"{path}_norm2", (width,)), (f"{path}_conv2", (width, width, 3, 3)))
    if reads != width:
        yield f"{path}_conv_shortcut", (width, reads, 1, 1)


def _transformer(path: str, width: int, depth: int, unet: UnetShape) -> Iterator[tuple[str, Shape]]:
    square = (width, width) if unet.use_linear_projection else (width, width, 1, 1)
    yield from ((f"{path}_norm", (width,)), (f"{path}_proj_in", square), (f"{path}_proj_out", square))
    for number in range(depth):
        block = f"{path}_transformer_blocks_{number}"
        yield from ((f"{block}_norm{i}", (width,)) for i in (1, 2, 3))
        for attention, text in (("attn1", width), ("attn2", unet.cross_attention_dim)):
            yield from ((f"{block}_{attention}_{which}", (width, width)) for which in ("to_q", "to_out_0"))
            yield from ((f"{block}_{attention}_{which}", (width, text)) for which in ("to_k", "to_v"))
        yield from ((f"{block}_ff_net_0_proj", (8 * width, width)), (f"{block}_ff_net_2", (width, 4 * width)))
