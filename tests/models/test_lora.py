"""LoRA slots against dense weights: what a mix adds is the sum of what its parts add, and nothing stays."""

import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.errors import UserError
from sdpersonal.models.lora import LoraAdapters, to_lora
from sdpersonal.prompts import Token


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(12, 7)
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, x, image):
        return self.to_q(x), self.conv(image)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().double()


def some_lora(seed, rank, alpha):
    rng = np.random.default_rng(seed)
    return Lora(
        {
            "lora_unet_to_q": LoraLayer(rng.normal(size=(rank, 12)), rng.normal(size=(7, rank)), alpha),
            "lora_unet_conv": LoraLayer(rng.normal(size=(rank, 3, 3, 3)), rng.normal(size=(5, rank, 1, 1)), alpha),
        }
    )


def dense(model, mix):
    """The same by adding B A alpha / r to each weight, as the paper writes it."""
    other = Small().double()
    other.load_state_dict(model.state_dict())
    for lora, strength in mix:
        for name, layer in lora.layers.items():
            weight = getattr(other, name.removeprefix("lora_unet_")).weight
            up, down = layer.up.reshape(len(layer.up), -1), layer.down.reshape(len(layer.down), -1)
            delta = (up @ down).reshape(weight.shape) * layer.alpha / layer.rank * strength
            weight.data += torch.tensor(delta)
    return other


@pytest.mark.parametrize("strengths", [(1.0,), (0.7, 1.3), (1.0, 0.0, 0.25)])
def test_a_lora_mix_equals_the_sum_of_its_loras(model, strengths):
    mix = [(some_lora(i, rank=2 + i, alpha=1.5 + i), s) for i, s in enumerate(strengths)]
    x, image = torch.randn(4, 12).double(), torch.randn(2, 3, 8, 8).double()
    with torch.no_grad(), LoraAdapters({"lora_unet": model}).active(mix):
        ours = model(x, image)
    for concept, reference in zip(ours, dense(model, mix)(x, image), strict=True):
        torch.testing.assert_close(concept, reference, rtol=1e-5, atol=1e-5)  # the slots hold fp32 factors


def test_an_exception_removes_the_active_loras(model):
    x, image = torch.randn(4, 12).double(), torch.randn(2, 3, 8, 8).double()
    adapters, before = LoraAdapters({"lora_unet": model}), model(x, image)
    with pytest.raises(RuntimeError, match="boom"), adapters.active([(some_lora(0, 2, 2.0), 1.0)]):
        assert not torch.equal(model(x, image)[0], before[0])
        raise RuntimeError("boom")
    assert all(torch.equal(a, b) for a, b in zip(model(x, image), before, strict=True))


def test_a_new_lora_has_no_effect_and_can_be_disabled(model):
    x, image = torch.randn(4, 12).double(), torch.randn(2, 3, 8, 8).double()
    adapters, before = LoraAdapters({"lora_unet": model}), model(x, image)[0]
    trained = adapters.add_trainable("attention", 3, torch.Generator().manual_seed(0))
    assert {name: value.dtype for name, value in trained.items()} == {
        "lora_unet_to_q.lora_down.weight": torch.float32,
        "lora_unet_to_q.lora_up.weight": torch.float32,
    }
    assert torch.equal(model(x, image)[0], before)  # B is zero
    trained["lora_unet_to_q.lora_up.weight"].data += 1.0
    changed = model(x, image)[0]
    assert not torch.equal(changed, before)
    with adapters.disabled():
        assert torch.equal(model(x, image)[0], before)
    assert torch.equal(model(x, image)[0], changed)
    lora = to_lora(trained)
    adapters.clear()
    with torch.no_grad(), adapters.active([(lora, 1.0)]):
        torch.testing.assert_close(model(x, image)[0], changed)


@pytest.mark.parametrize("change", ["name", "width"])
def test_a_lora_of_another_model_is_refused(model, change):
    lora = some_lora(0, 2, 2.0)
    if change == "name":
        lora.layers["lora_unet_elsewhere"] = lora.layers["lora_unet_to_q"]
    else:
        lora.layers["lora_unet_to_q"] = LoraLayer(np.zeros((2, 13)), np.zeros((7, 2)), 2.0)
    with pytest.raises(UserError, match="<me/duck> was made for another base"):
        LoraAdapters({"lora_unet": model}).check(lora, "<me/duck>")


def test_attention_targets_are_the_projections_of_all_transformer_blocks(tiny):
    names = tiny.adapters.layer_names("attention")
    blocks = sum(isinstance(module, BasicTransformerBlock) for module in tiny.unet.modules())
    assert len(names) == blocks * 2 * 4  # self and cross; q, k, v, out
    assert all(name.startswith("lora_unet_") and "transformer_blocks" in name for name in names)
    options = tiny.adapters.layer_names("transformer")
    assert set(names) < set(options) and not any("time" in name or "resnets" in name for name in options)


def test_convolutions_and_text_encoders_are_trained_on_request(tiny):
    usual, everything = tiny.adapters.layer_names("transformer"), tiny.adapters.layer_names("all", text_encoder=True)
    assert set(usual) < set(everything)
    options = set(everything) - set(usual)
    assert {"lora_unet_down_blocks_0_resnets_0_conv1", "lora_unet_down_blocks_0_downsamplers_0_conv"} <= options
    assert {
        "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
        "lora_te_text_model_encoder_layers_3_mlp_fc2",
    } <= options
    assert not any(
        word in name for name in options for word in ("time_embedding", "conv_in", "conv_out", "token_embedding")
    )
    assert all(
        name.endswith("_proj") for name in set(tiny.adapters.layer_names("attention", text_encoder=True)) - set(usual)
    )
    alone = tiny.adapters.add_trainable("attention", 2, torch.Generator().manual_seed(0))
    both = tiny.adapters.add_trainable("attention", 2, torch.Generator().manual_seed(0), text_encoder=True)
    tiny.adapters.clear()
    assert all(torch.equal(alone[name], both[name]) for name in alone) and len(both) > len(alone)


def test_a_saved_convolution_lora_predicts_the_same_as_in_training(tiny):
    noisy, t = torch.randn(1, *tiny.latent_shape(128, 128)), torch.tensor([500])
    trained = tiny.adapters.add_trainable("all", 2, torch.Generator().manual_seed(0), text_encoder=True)
    try:
        for name, parameter in trained.items():
            if name.endswith("up.weight"):
                parameter.data += 0.01
        condition = tiny.encode_captions([["a duck"]])
        weights = tiny.predict(noisy, t, condition)
        weights.square().mean().backward()
        assert [name for name, item in trained.items() if item.grad is None or not item.grad.abs().sum()] == []
    finally:
        tiny.adapters.clear()
    lora = to_lora(trained)
    conv = lora.layers["lora_unet_down_blocks_0_resnets_0_conv1"]
    width = tiny.unet.config.block_out_channels[0]
    assert conv.down.shape == (2, width, 3, 3) and conv.up.shape == (width, 2, 1, 1)
    Concept(Token("me", "duck"), Card(base="tiny"), {}, lora)  # a file can hold it
    tiny.adapters.check(lora, "<me/duck>")
    with torch.no_grad(), tiny.adapters.active([(lora, 1.0)]):
        torch.testing.assert_close(
            tiny.predict(noisy, t, tiny.encode_captions([["a duck"]])), weights, atol=1e-5, rtol=1e-5
        )


def test_linear_layers_and_1x1_convolutions_accept_each_others_loras():
    """SD 1.x has convolutions where SD 2.x has linear layers, and files of either kind are about."""
    torch.manual_seed(0)
    linear, conv = nn.Sequential(nn.Linear(6, 4, bias=False)), nn.Sequential(nn.Conv2d(6, 4, 1, bias=False))
    conv[0].weight.data = linear[0].weight.data[:, :, None, None]
    flat = LoraLayer(np.random.default_rng(0).normal(size=(2, 6)), np.random.default_rng(1).normal(size=(4, 2)), 2.0)
    square = LoraLayer(flat.down[:, :, None, None], flat.up[:, :, None, None], 2.0)
    x, answers = torch.randn(1, 6, 3, 3), []
    for layer in (flat, square):
        for model in (linear, conv):
            adapters = LoraAdapters({"lora_unet": model})
            adapters.check(lora := Lora({"lora_unet_0": layer}), "<me/duck>")
            with torch.no_grad(), adapters.active([(lora, 1.0)]):
                answers.append(model(x) if model is conv else model(x.movedim(1, -1)).movedim(-1, 1))
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0])


def test_a_lora_with_another_kernel_size_is_refused(model):
    lora = Lora({"lora_unet_conv": LoraLayer(np.zeros((2, 3, 1, 1)), np.zeros((5, 2, 1, 1)), 2.0)})
    with pytest.raises(UserError, match="layer lora_unet_conv does not fit"):
        LoraAdapters({"lora_unet": model}).check(lora, "<me/duck>")


# --- a mix that is drawn with often is merged -------------------------------------------------------------------------


def weights_of(model):
    return {name: (value, value.data_ptr()) for name, value in model.named_parameters()}


def test_a_repeatedly_used_mix_is_merged_and_unmerged_exactly(model):
    adapters, mix = LoraAdapters({"lora_unet": model}), [(some_lora(i, 2 + i, 1.5), 0.7 - i / 4) for i in range(2)]
    x, image = torch.randn(2, 3, 12).double(), torch.randn(2, 3, 8, 8).double()
    before, bare = weights_of(model), model(x, image)
    expected, less = (dense(model, sample)(x, image) for sample in (mix, mix[:1]))
    with torch.no_grad(), adapters.active(mix):
        for use in range(4):
            for concept, reference in zip(model(x, image), expected, strict=True):
                torch.testing.assert_close(concept, reference, rtol=1e-5, atol=1e-5)
            assert (model.to_q.weight is before["to_q.weight"][0]) == (use == 0)  # two uses are no more than prompts
        assert not model.to_q._forward_hooks and not model.conv._forward_hooks
        adapters.set(mix[:1])
        assert model.to_q.weight is before["to_q.weight"][0]
        for _ in range(3):
            other = model(x, image)
        torch.testing.assert_close(other[0], less[0], rtol=1e-5, atol=1e-5)
    after = weights_of(model)
    assert all(after[name][0] is value and after[name][1] == place for name, (value, place) in before.items())
    assert all(torch.equal(a, b) for a, b in zip(model(x, image), bare, strict=True))


def test_trainable_loras_are_never_merged(model):
    x, image = torch.randn(4, 12).double(), torch.randn(2, 3, 8, 8).double()
    adapters, original = LoraAdapters({"lora_unet": model}), model.to_q.weight
    trained = adapters.add_trainable("attention", 3, torch.Generator().manual_seed(0))
    for _ in range(4):
        with torch.no_grad():  # a trial's pictures
            model(x, image)
        with adapters.disabled():
            model(x, image)
    assert model.to_q.weight is original
    model(x, image)[0].square().sum().backward()
    assert trained["lora_unet_to_q.lora_up.weight"].grad.abs().sum() > 0


def test_a_merged_mix_can_be_disabled_and_enabled_again(model):
    x, image, mix = torch.randn(4, 12).double(), torch.randn(2, 3, 8, 8).double(), [(some_lora(0, 2, 2.0), 1.0)]
    adapters, bare = LoraAdapters({"lora_unet": model}), model(x, image)
    with torch.no_grad(), adapters.active(mix):
        mixed = [model(x, image)[0] for _ in range(3)][-1]
        with adapters.disabled():
            assert torch.equal(model(x, image)[0], bare[0])
        torch.testing.assert_close(model(x, image)[0], mixed)
    assert torch.equal(model(x, image)[0], bare[0])


def test_loras_of_large_and_half_precision_layers_are_not_merged():
    for layer in (nn.Linear(1024, 1024), nn.Linear(8, 8).bfloat16()):
        model = nn.Sequential(layer)
        width = layer.in_features
        part = LoraLayer(np.ones((1, width), np.float32), np.ones((width, 1), np.float32), 1.0)
        original, x = layer.weight, torch.ones(1, width, dtype=layer.weight.dtype)
        with torch.no_grad(), LoraAdapters({"lora_unet": model}).active([(Lora({"lora_unet_0": part}), 1.0)]):
            answers = [model(x) for _ in range(4)]
            assert layer.weight is original
        assert all(torch.equal(item, answers[0]) for item in answers)
