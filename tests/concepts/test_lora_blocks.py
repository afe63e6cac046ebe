"""Block weights: which block a layer is in, held to the order in which diffusers' UNets run, and scaled LoRAs."""

import functools
import re

import numpy as np
import pytest
import torch

from sdpersonal.concepts.concept import Lora, LoraLayer
from sdpersonal.concepts.importers.layer_shapes import layer_table
from sdpersonal.concepts.lora_blocks import block_of, with_block_weights
from sdpersonal.prompts import BlockWeights, parse
from sdpersonal.prompts.block_weights import BLOCKS, FORMS
from support import foreign


@functools.cache
def blocks_as_run(kind: str) -> dict[str, str]:
    """The number of the block of each part of a UNet, counted while it runs.

    In the original code the first convolution, every resnet on the way down and every downsampler begins a block, and
    on the way up every resnet; an attention or upsampler is in the block of the resnet before it.
    """
    unet, order = foreign.unet(kind), []
    parts = [
        (path, module)
        for path, module in unet.named_modules()
        if re.fullmatch(r"conv_in|.*(resnets|attentions|samplers)\.\d+", path)
    ]
    hooks = [module.register_forward_pre_hook(lambda *_, path=path: order.append(path)) for path, module in parts]
    sizes = {"text_embeds": (1, 1280), "time_ids": (1, 6)} if kind == "sdxl" else {}
    with torch.device("meta"):
        added = {name: torch.zeros(shape) for name, shape in sizes.items()}
        width = foreign.UNETS[kind]["cross_attention_dim"]
        unet(torch.zeros(1, 4, 64, 64), torch.zeros(1), torch.zeros(1, 77, width), added_cond_kwargs=added or None)
    for hook in hooks:
        hook.remove()
    numbers, counts = {}, {"IN": -1, "OUT": -1}
    for path in order:
        side = "MID" if path.startswith("mid") else "OUT" if path.startswith("up") else "IN"
        if side != "MID":
            counts[side] += "attentions" not in path and "upsamplers" not in path
        numbers[path] = side if side == "MID" else f"{side}{counts[side]:02}"
    return numbers


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_blocks_are_numbered_in_the_order_that_diffusers_runs_them(kind):
    expected, originals = blocks_as_run(kind), foreign.originals(kind)
    checked = set()
    for path, _ in foreign.unet(kind).named_modules():
        part = re.match(r"conv_in|.*?(resnets|attentions|samplers)\.\d+", path)
        if part and path in originals and path != part[0]:
            checked.add(expected[part[0]])
            names = {foreign.flat_name(path), foreign.flat_name(originals[path])}
            assert {block_of(f"lora_unet_{name}") for name in names} == {expected[part[0]]}
    assert block_of("lora_unet_conv_in") == block_of("lora_unet_input_blocks_0_0") == "IN00" == expected["conv_in"]
    assert checked | {"IN00", "BASE"} == set(FORMS[20 if kind == "sdxl" else 26])


@pytest.mark.parametrize(("base", "size"), [("sd1", 17), ("sd2", 17), ("sdxl", 12)])
def test_the_short_weight_lists_cover_the_blocks_with_attention(base, size):
    with_attention = {block_of(name) for name in layer_table(base) if "attn" in name}
    assert with_attention == set(FORMS[size])
    assert list(FORMS[size]) == sorted(FORMS[size], key=BLOCKS.index)


@pytest.mark.parametrize("base", ["sd1", "sd2", "sdxl", "tiny"])
def test_every_layer_except_embeddings_and_output_has_a_block(base):
    outside = {name.removeprefix("lora_unet_") for name in layer_table(base) if block_of(name) is None}
    for name in outside:
        assert re.fullmatch(r"(time_embed|add_embedding|label_emb|out_\d|conv_norm_out|conv_out).*", name)
    assert {block_of(name) for name in layer_table(base) if "_te" in name[:8]} == {"BASE"}


def test_the_built_in_base_numbers_its_blocks_by_resolution_level():
    levels = {"IN": {}, "OUT": {}}
    for name in layer_table("tiny"):
        if found := re.match(r"lora_unet_(down|up)_blocks_(\d)", name):
            side, block = ("IN" if found[1] == "down" else "OUT"), block_of(name)
            levels[side].setdefault(int(found[2]), set()).add((int(block.removeprefix(side)) - (side == "IN")) // 3)
    assert levels == {side: {level: {level} for level in range(3)} for side in ("IN", "OUT")}


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_",
        "lora_unet_down_blocks_9_resnets_9_conv1",
        "lora_unet_input_blocks_12_0",
        "lora_unet_x_input_blocks_1_",
    ],
)
def test_unknown_layers_are_in_no_block(name):
    assert block_of(name) is None


def a_lora(names, seed=0):
    rng = np.random.default_rng(seed)
    return Lora(
        {
            name: LoraLayer(
                rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(3, 2)).astype(np.float32), 1.0 + i
            )
            for i, name in enumerate(names)
        }
    )


def delta(layer):
    return layer.up @ layer.down * layer.alpha / layer.rank


def test_layers_are_scaled_and_layers_of_weight_0_are_left_out():
    ways = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1": 0.5,
        "lora_unet_down_blocks_0_attentions_0_proj_in": 0.0,  # IN01
        "lora_unet_down_blocks_1_attentions_0_proj_in": -2.0,  # IN04
        "lora_unet_mid_block_attentions_0_proj_in": 1.0,
        "lora_unet_up_blocks_1_attentions_2_proj_in": 3.0,  # OUT05
        "lora_unet_time_embedding_linear_1": 1.0,  # in no block
    }
    lora = a_lora(ways)
    blocks = parse("<a:lbw=0.5,0,0,-2,0,0,0,1,0,0,3,0,0,0,0,0,0>").mentions[0].blocks
    scaled = with_block_weights(lora, blocks)
    assert set(scaled.layers) == {name for name, way in ways.items() if way}
    for name, layer in scaled.layers.items():
        np.testing.assert_allclose(delta(layer), ways[name] * delta(lora.layers[name]), rtol=1e-6)
    assert all(
        layer.alpha == 1.0 + i for i, layer in enumerate(lora.layers.values())
    )  # the concept's own are as before
    assert not with_block_weights(lora, BlockWeights((0.0,) * 26)).layers.keys() - {"lora_unet_time_embedding_linear_1"}


def test_dora_layers_are_scaled_by_block_weights(tiny):
    """DoRA has no number of its own to scale; half a block weight must be half its strength, biases included."""
    rng = np.random.default_rng(1)
    names = [name for name in tiny.adapters.layers() if name.endswith(("conv1", "attn1_to_q"))]
    down, mid, up = (next(name for name in names if part in name) for part in ("down_blocks_1", "mid_", "up_blocks_1"))
    changes = {}
    for name in (down, mid, up):
        weight = tiny.adapters.layers()[name].weight
        rows, width = len(weight), weight[0].numel()
        changes[name] = {
            "lora_up.weight": rng.normal(size=(rows, 2)).astype(np.float32),
            "lora_down.weight": rng.normal(size=(2, *weight.shape[1:])).astype(np.float32) / width**0.5,
            "alpha": np.array(2, np.float32),
            "dora_scale": np.abs(rng.normal(size=(rows, 1))).astype(np.float32),
        }
    lora = Lora({}, changes)
    scaled = with_block_weights(lora, parse("<a:in=0:mid=0.5:out=-1>").mentions[0].blocks)
    assert set(scaled.changes) == {mid, up} and scaled.changes[mid] is changes[mid]
    twice = with_block_weights(scaled, parse("<a:mid=0.5>").mentions[0].blocks)
    for name, mix, alone in (
        (mid, (scaled, 0.8), 0.4),
        (up, (scaled, 0.8), -0.8),
        (down, (scaled, 0.8), 0.0),
        (mid, (twice, 1.0), 0.25),
    ):
        layer = tiny.adapters.layers()[name]
        x = torch.randn(2, *layer.weight.shape[1:2], *(8 for _ in layer.weight.shape[2:]))
        with torch.no_grad(), tiny.adapters.active([mix]):
            got = layer(x)
        with torch.no_grad(), tiny.adapters.active([(lora, alone)]):
            assert torch.equal(got, layer(x))
