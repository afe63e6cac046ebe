"""Different mixes of LoRAs for groups of a batch's rows, against models whose weights were changed by hand."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from sdpersonal.concepts.concept import Lora, LoraLayer
from sdpersonal.models.lora import LoraAdapters

ROWS = 2  # of a group


class Small(nn.Module):
    """Linear layers with inputs (R, n) and (R, k, n), convolutions with a stride and 1x1, both kinds of norms."""

    def __init__(self):
        super().__init__()
        self.time = nn.Linear(6, 8)
        self.to_q = nn.Linear(12, 16, bias=False)
        self.to_out = nn.Linear(16, 12)
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.proj = nn.Conv2d(8, 12, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.norm1 = nn.LayerNorm(16)

    def forward(self, image, words, t):
        hidden = self.norm(self.conv(image)) + self.time(t)[:, :, None, None]
        return self.proj(hidden), self.to_out(self.norm1(self.to_q(words)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Small().double()
    for norm in (model.norm, model.norm1):
        norm.weight.data, norm.bias.data = torch.rand_like(norm.weight) + 0.5, torch.rand_like(norm.bias)
    return model.requires_grad_(False)


def numbers(rng, *shape):
    return rng.normal(size=shape).astype(np.float32) / 4


def plain(seed, rank=2, names=("time", "to_q", "to_out", "conv", "proj")):
    rng, layers, small = np.random.default_rng(seed), {}, Small()
    for name in names:
        out, *rest = getattr(small, name).weight.shape
        up = (out, rank, *(1 for _ in rest[1:]))
        layers[f"lora_unet_{name}"] = LoraLayer(numbers(rng, rank, *rest), numbers(rng, *up), rank / 2 + seed)
    return Lora(layers)


def other(seed):
    """Changes that are no LoRA of a small rank: products of LoRAs, full weights, biases, norms."""
    rng = np.random.default_rng(seed)
    loha = {
        f"hada_w{i}_{side}": numbers(rng, *shape) for i in (1, 2) for side, shape in (("a", (16, 4)), ("b", (4, 12)))
    }
    changes = {
        "to_q": loha | {"alpha": np.float32(3)},
        "to_out": {"diff": numbers(rng, 12, 16), "diff_b": numbers(rng, 12)},
        "conv": {"diff": numbers(rng, 8, 3, 3, 3)},
        "time": {"diff_b": numbers(rng, 8)},
        "norm": {"w_norm": numbers(rng, 8), "b_norm": numbers(rng, 8)},
        "norm1": {"w_norm": numbers(rng, 16), "b_norm": numbers(rng, 16)},
    }
    return Lora({}, {f"lora_unet_{name}": change for name, change in changes.items()})


def add_by_hand(layer, change, strength):
    """Add a layer's change to its weight and bias, as the formulas of LyCORIS are written."""
    if isinstance(change, LoraLayer):
        up, down = change.up.reshape(len(change.up), -1), change.down.reshape(change.rank, -1)
        delta = up @ down * change.alpha / change.rank
    elif "hada_w1_a" in change:
        delta = (change["hada_w1_a"] @ change["hada_w1_b"]) * (change["hada_w2_a"] @ change["hada_w2_b"])
        delta = delta * change["alpha"] / len(change["hada_w1_b"])
    else:
        delta = change.get("diff", change.get("w_norm", np.zeros(layer.weight.shape)))
        bias = change.get("diff_b", change.get("b_norm", np.zeros(layer.bias.shape)))
        layer.bias.data += strength * torch.tensor(bias)
    layer.weight.data += strength * torch.tensor(delta).reshape(layer.weight.shape)


def by_hand(model, mixes, inputs):
    """Every group's rows through a model of its own."""
    outputs = []
    for mix, *rows in zip(mixes, *(x.chunk(len(mixes)) for x in inputs), strict=True):
        changed = deepcopy(model)
        for lora, strength in mix:
            for name, change in (lora.layers | lora.changes).items():
                add_by_hand(getattr(changed, name.removeprefix("lora_unet_")), change, strength)
        outputs.append(changed(*rows))
    return [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def inputs(groups, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    shapes = ((3, 9, 8), (5, 12), (6,))
    return [torch.randn(groups * ROWS, *shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


A, B, C, X, Y = plain(1), plain(2, rank=3), plain(3, names=("to_q",)), other(4), other(5)
MIXES = {
    "one each": [[(A, 1.0)], [(B, 0.7)]],
    "none, one, both": [[], [(A, 1.0)], [(A, 1.0), (B, -0.5)]],
    "two strengths of one": [[(A, 0.3)], [(A, 1.2)], [(A, 0.3)]],
    "a part shared": [[(A, 1.0), (B, 0.5)], [(C, 1.0), (A, 1.0)], [(A, 1.0)]],
    "all shared": [[(A, 1.0), (X, 0.5)], [(A, 1.0), (X, 0.5)]],
    "full changes": [[(X, 1.0)], [], [(Y, 0.5)]],
    "full changes of one, LoRAs of others": [[(X, 0.6), (A, 1.0)], [(B, 1.0)], [(A, 1.0)]],
    "full changes shared": [[(X, 0.6), (A, 1.0)], [(X, 0.6), (Y, -1.0)], [(X, 0.6)]],
    "many, of several ranks": [[(A, 1.0)], [(B, 0.7)], [(C, 1.0), (A, 0.5)], [(plain(6, rank=5), -1.0)]],
    "many, one without": [[(A, 1.0)], [(B, 0.7)], [], [(C, 1.0)], [(A, 1.0)]],
    "many, full changes of one": [[(A, 1.0)], [(B, 0.7)], [(X, 0.6), (A, 1.0)], [(C, 1.0)]],
    "strength 0": [[(A, 0.0), (X, 0.0)], [(B, 1.0)]],
    "a LoRA shared, full changes of one": [[(A, 1.0)], [(A, 1.0), (X, 0.5)]],
}


@pytest.mark.parametrize("has_buffers", [False, True], ids=["", "in buffers"])
@pytest.mark.parametrize("mixes", MIXES.values(), ids=MIXES)
def test_each_group_has_the_weights_of_its_own_mix(model, mixes, has_buffers):
    adapters, x = LoraAdapters({"lora_unet": model}), inputs(len(mixes))
    if has_buffers:
        adapters.use_buffers(torch.device("cpu"))
        adapters.set([(plain(9, rank=9), 1.0)])  # of another rank, and of the same
        adapters.set_groups([[(plain(8 - i, rank=8), 1.0)] for i in range(len(mixes))])
        adapters.clear()
    bare = {name: parameter.clone() for name, parameter in model.named_parameters()}
    before, expected = model(*x), by_hand(model, mixes, x)
    adapters.set_groups(mixes)
    for _ in range(4):  # what all groups share is merged into the weights after a few uses
        for ours, theirs in zip(model(*x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # the factors are fp32
    for count in (len(mixes) - 1, 1, len(mixes)):
        adapters.use_first_groups(count)
        for ours, theirs in zip(model(*(rows[: count * ROWS] for rows in x)), expected, strict=True):
            torch.testing.assert_close(ours, theirs[: count * ROWS], rtol=1e-5, atol=1e-5)
    adapters.clear()
    assert all(torch.equal(parameter, bare[name]) for name, parameter in model.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(model(*x), before, strict=True))
    assert not any(module._forward_hooks for module in model.modules())


def test_successive_mixes_do_not_affect_each_other(model):
    adapters = LoraAdapters({"lora_unet": model})
    for mixes in MIXES.values():
        x = inputs(len(mixes))
        expected = by_hand(model, mixes, x)
        adapters.set_groups(mixes)
        torch.testing.assert_close(model(*x)[0], expected[0], rtol=1e-5, atol=1e-5)
        adapters.clear()
    for mixes in (MIXES["full changes shared"], MIXES["a part shared"]):  # without clearing between them
        adapters.set_groups(mixes)
    adapters.clear()
    torch.testing.assert_close(model(*x)[0], by_hand(model, [[], []], x)[0])
    expected = by_hand(model, [[(B, 1.0)]] * 2, x)
    adapters.set_groups(MIXES["a part shared"])
    adapters.set([(B, 1.0)])  # one mix for all rows again
    torch.testing.assert_close(model(*x)[0], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["a part shared", "full changes shared"])
def test_lora_changes_follow_the_dtype_of_the_model(model, name):
    mixes = MIXES[name]
    expected = by_hand(model, mixes, inputs(len(mixes)))
    adapters = LoraAdapters({"lora_unet": model})
    adapters.set_groups(mixes)
    model.float()
    for ours, theirs in zip(model(*inputs(len(mixes), torch.float32)), expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_biases_of_a_group_have_the_dtype_of_its_layer(model):
    model.bfloat16()
    adapters = LoraAdapters({"lora_unet": model})
    adapters.set_groups([[(X, 1.0)], [(A, 1.0)]])
    assert all(out.dtype == torch.bfloat16 for out in model(*inputs(2, torch.bfloat16)))


def test_text_encoders_use_the_loras_shared_by_all_groups(model):
    text = nn.ModuleDict({"q_proj": nn.Linear(4, 4)}).double().requires_grad_(False)
    adapters = LoraAdapters({"lora_unet": model, "lora_te": text})
    rng = np.random.default_rng(0)
    shared, own = (Lora({"lora_te_q_proj": LoraLayer(numbers(rng, 2, 4), numbers(rng, 4, 2), 2.0)}) for _ in range(2))
    adapters.set_groups([[(shared, 1.0), (own, 1.0)], [(shared, 1.0)]])
    x, layer = torch.randn(3, 4).double(), shared.layers["lora_te_q_proj"]
    ours = text["q_proj"](x)
    adapters.clear()
    expected = text["q_proj"](x) + x @ torch.tensor(layer.down).double().T @ torch.tensor(layer.up).double().T
    torch.testing.assert_close(ours, expected)


def test_groups_in_one_batch_are_predicted_as_in_separate_batches(tiny):
    """The built-in base: rows of one batch with three mixes, against three batches."""
    rng = np.random.default_rng(0)
    mixes = []
    for count in range(3):
        layers = {}
        for name in tiny.adapters.layer_names("all"):
            weight = tiny.adapters.layers()[name].weight
            up = (len(weight), 2, *(1 for _ in weight.shape[2:]))
            layers[name] = LoraLayer(numbers(rng, 2, *weight.shape[1:]) / 4, numbers(rng, *up) / 4, 2.0)
        mixes.append([*(mixes[-1] if mixes else []), (Lora(layers), 0.5)][:count])
    noisy = torch.randn(6, *tiny.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    t, conditioning = torch.full((6,), 500), tiny.encode_captions([["a duck"], ["a cat"]] * 3)
    with torch.no_grad(), tiny.adapters.active(()):
        tiny.adapters.set_groups(mixes)
        together = [tiny.predict(noisy, t, conditioning) for _ in range(3)][-1]
        for i, mix in enumerate(mixes):
            rows = slice(2 * i, 2 * i + 2)
            tiny.adapters.set(mix)
            alone = tiny.predict(noisy[rows], t[rows], conditioning[rows])
            torch.testing.assert_close(together[rows], alone, atol=1e-4, rtol=1e-4)
            assert not i or (alone - tiny.predict(noisy[:2], t[:2], conditioning[:2])).abs().max() > 1e-2
