"""Blocks that stay in channels_last on a card: their wiring with PyTorch's functions for kernels, and the way back."""

import copy
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional as F

from sdpersonal.models import fast_blocks, load_base, lora
from sdpersonal.models.fast_blocks import find_kernels, use_fast_blocks
from sdpersonal.models.frozen_conv import FrozenConv2d, use_frozen_convs

NARROW = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
CHANNELS_LAST = torch.channels_last


def in_torch():
    """What the Triton kernels compute, in PyTorch's functions."""

    def group_norm(x, num_groups, weight, bias, eps, *, silu, shift=None, shift_bias=None):
        shifted = x if shift is None else x + shift.detach()[:, :, None, None]
        shifted = shifted if shift_bias is None else shifted + shift_bias[:, None, None]
        y = F.group_norm(shifted, num_groups, weight, bias, eps).contiguous(memory_format=CHANNELS_LAST)
        return (F.silu(y) if silu else y), x

    def geglu(x):
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)

    def layer_norm(x, weight, bias, eps, added=None):
        total = x if added is None else x + added
        return F.layer_norm(total, total.shape[-1:], weight, bias, eps), total

    return SimpleNamespace(
        layer_norm=layer_norm,
        supports_group_norm=lambda channels, num_groups: True,
        group_norm=group_norm,
        geglu=geglu,
        join=lambda first, second: torch.cat([first, second], dim=1),
        add_with_bias=lambda first, second, bias: first + second + bias[:, None, None],
    )


@pytest.fixture
def on_card(monkeypatch):
    """The blocks believe that they run on a card with kernels."""
    monkeypatch.setattr(fast_blocks, "_kernels", lambda x: in_torch())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def two_unets(**config):
    """A frozen UNet, and its copy with fast blocks."""
    torch.manual_seed(0)
    plain = UNet2DConditionModel(**NARROW | config).requires_grad_(False).eval()
    use_frozen_convs(plain)
    fast = copy.deepcopy(plain)
    use_fast_blocks(fast)
    return plain, fast


def predict(unet, side=8):
    """The prediction, and the gradients with respect to latents and prompt."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, side, side, generator=generator).requires_grad_()
    states = torch.randn(2, 7, 24, generator=generator).requires_grad_()
    out = unet(latents, torch.tensor([500, 20]), states).sample
    return out, *torch.autograd.grad(out.square().sum(), (latents, states))


def assert_close(values, expected):
    for value, wanted in zip(values, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("linear", [False, True])
def test_fast_blocks_are_bitwise_equal_on_the_cpu(linear):
    plain, fast = two_unets(use_linear_projection=linear)
    for value, wanted in zip(predict(fast), predict(plain), strict=True):
        assert torch.equal(value, wanted)
    assert all(a.stride() == b.stride() for a, b in zip(fast.parameters(), plain.parameters(), strict=True))


def test_fast_blocks_preserve_names_weights_and_hooks():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**NARROW).requires_grad_(False)
    names, weights, calls = [name for name, _ in unet.named_modules()], dict(unet.state_dict()), []
    unet.mid_block.resnets[0].register_forward_hook(lambda *_: calls.append(1))
    use_frozen_convs(unet)
    use_fast_blocks(unet)
    assert [name for name, _ in unet.named_modules()] == names
    assert all(weight is weights[key] or torch.equal(weight, weights[key]) for key, weight in unet.state_dict().items())
    predict(unet)
    assert calls == [1]
    kinds = {type(module).__name__ for module in unet.modules()}
    assert {
        "FastResnetBlock2D",
        "FastTransformer2DModel",
        "FastGroupNorm",
        "FastGEGLU",
        "FastTransformerBlock",
    } <= kinds
    assert not {"ResnetBlock2D", "Transformer2DModel", "GroupNorm", "GEGLU", "BasicTransformerBlock"} & kinds


@pytest.mark.parametrize("linear", [False, True])
def test_fast_blocks_predict_the_same_in_channels_last(linear, on_card):
    plain, fast = two_unets(use_linear_projection=linear)
    expected = predict(plain)
    assert_close(predict(fast), expected)
    strides = []
    for module in fast.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm | ResnetBlock2D):  # with hooks they take the way round
            module.register_forward_hook(
                lambda module, args, out: strides.append(out.is_contiguous(memory_format=CHANNELS_LAST))
            )
    assert_close(predict(fast), expected)
    assert len(strides) > 20 and all(strides)
    assert fast.conv_in.weight.is_contiguous(memory_format=CHANNELS_LAST)
    assert plain.conv_in.weight.is_contiguous()


def test_fast_blocks_support_latents_of_odd_size(on_card):
    plain, fast = two_unets()
    assert_close(predict(fast, side=9), predict(plain, side=9))


def test_fast_blocks_compute_the_gradient_of_the_time_embedding(on_card):
    plain, fast = two_unets()
    gradients = []
    for unet in (plain, fast):
        layer = unet.down_blocks[0].resnets[0].time_emb_proj
        extra = torch.zeros(32, requires_grad=True)
        layer.register_forward_hook(lambda module, args, out, extra=extra: out + extra)
        gradients.append(torch.autograd.grad(unet_loss(unet), extra)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def unet_loss(unet):
    generator = torch.Generator().manual_seed(1)
    latents, states = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 7, 24, generator=generator)
    return unet(latents, torch.tensor([500]), states).sample.square().sum()


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_a_lora_gets_the_same_gradients_with_fast_blocks(targets, on_card, monkeypatch):
    base = load_base("tiny", device="cpu")
    trained = base.adapters.add_trainable(targets, 2, torch.Generator().manual_seed(0))
    for name, parameter in trained.items():
        if "lora_up" in name:
            nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
    condition = base.encode_captions([["a duck"]])
    noisy = torch.randn(1, *base.latent_shape(128, 128), generator=torch.Generator().manual_seed(2))

    def gradients():
        out = base.predict(noisy, torch.tensor([300]), condition)
        assert out.is_contiguous()
        return out, *torch.autograd.grad(out.square().mean(), list(trained.values()))

    monkeypatch.setattr(lora, "_takes_one_product", lambda *_: True)
    fast = gradients()
    base.enable_gradient_checkpointing(1)
    checkpointed = gradients()
    base.enable_gradient_checkpointing(0)
    monkeypatch.setattr(fast_blocks, "_kernels", lambda x: None)
    monkeypatch.setattr(lora, "_takes_one_product", lambda *_: False)
    expected = gradients()
    assert_close(fast, expected)
    assert_close(checkpointed, expected)


def test_trainable_norms_use_no_kernels(on_card):
    norm = nn.GroupNorm(4, 32)
    use_fast_blocks(model := nn.Sequential(norm))
    assert type(model[0]) is fast_blocks.FastGroupNorm
    assert fast_blocks._norm_kernels(norm, torch.randn(1, 32, 4, 4)) is None
    with torch.no_grad():
        assert fast_blocks._norm_kernels(norm, torch.randn(1, 32, 4, 4)) is not None
    norm.requires_grad_(False)
    assert fast_blocks._norm_kernels(norm, torch.randn(1, 32, 4, 4)) is not None
    assert fast_blocks._norm_kernels(norm, torch.randn(1, 32, 4)) is None


def test_unsupported_blocks_are_not_replaced():
    common = {"in_channels": 32, "temb_channels": 8}
    model = nn.ModuleList(
        [
            ResnetBlock2D(**common, time_embedding_norm="scale_shift"),
            ResnetBlock2D(**common, up=True),
            ResnetBlock2D(**common, non_linearity="mish"),
            nn.GroupNorm(4, 32, affine=False),
        ]
    )
    kinds = [type(module) for module in model]
    use_fast_blocks(model)
    assert [type(module) for module in model] == kinds


@pytest.mark.parametrize(
    "unusual", [{"rescale_output_factor": 2.0}, {"residual_connection": True}, {"qk_norm": "layer_norm"}]
)
@pytest.mark.parametrize("masked", [False, True])
def test_unsupported_attention_equals_that_of_diffusers(unusual, masked):
    torch.manual_seed(0)
    plain = Attention(16, heads=2, dim_head=8, **unusual)
    fast = copy.deepcopy(plain)
    use_fast_blocks(nn.Sequential(fast))
    x = torch.randn(2, 5, 16)
    mask = {"attention_mask": torch.zeros(2, 1, 5).index_fill(2, torch.tensor([1]), -1e4)} if masked else {}
    assert torch.equal(fast(x, **mask), plain(x, **mask))


def test_kernels_require_a_recent_gpu_triton_and_a_compiler(monkeypatch):
    find_kernels.cache_clear()
    card = torch.device("cuda", 0)
    assert find_kernels(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert find_kernels(card) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for error in (ImportError("No module named 'triton'"), RuntimeError("Failed to find C compiler")):

        def fail(name, error=error):
            raise error

        find_kernels.cache_clear()
        monkeypatch.setattr(importlib, "import_module", fail)
        assert find_kernels(card) is None
    monkeypatch.undo()
    find_kernels.cache_clear()


def test_a_base_with_fast_blocks_saves_its_original_weights(tmp_path, on_card):
    base = load_base("tiny", device="cpu")
    before = {key: weight.clone() for key, weight in base.unet.state_dict().items()}
    predicted = base.predict(
        torch.randn(1, *base.latent_shape(128, 128)), torch.tensor([1]), base.encode_captions([["a"]])
    )
    assert predicted.is_contiguous()
    assert any(not weight.is_contiguous() for weight in base.unet.parameters())
    base.save(tmp_path / "saved")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "saved" / "unet")
    for key, weight in again.state_dict().items():
        assert torch.equal(weight, before[key]) and weight.is_contiguous()


def test_a_frozen_pointwise_convolution_equals_that_of_pytorch(on_card):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 8, 1)
    frozen = copy.deepcopy(plain).requires_grad_(False)
    model = nn.Sequential(frozen)
    use_frozen_convs(model)
    use_fast_blocks(model)
    assert isinstance(frozen, FrozenConv2d)
    x = torch.randn(2, 6, 5, 4).to(memory_format=CHANNELS_LAST).requires_grad_()
    out = frozen(x)
    torch.testing.assert_close(out, plain(x))
    assert out.is_contiguous(memory_format=CHANNELS_LAST)
    direction = torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, x, direction), torch.autograd.grad(plain(x), x, direction))


@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (2, 3, 4, 12)])
@pytest.mark.parametrize("needs_input_gradient", [True, False])
def test_a_layer_fused_with_its_lora_has_equal_outputs_and_gradients(shape, needs_input_gradient, monkeypatch):
    torch.manual_seed(0)
    layer = nn.Linear(12, 9).double().requires_grad_(False)
    adapter = lora.LoraAdapter(layer)
    x = torch.randn(*shape).double().requires_grad_(needs_input_gradient)
    down, up = (torch.randn(size).double().requires_grad_() for size in ((3, 12), (9, 3)))
    adapter.set(down, up)
    inputs = [x, down, up] if needs_input_gradient else [down, up]
    results = []
    for is_one in (False, True):
        monkeypatch.setattr(lora, "_takes_one_product", lambda *_, is_one=is_one: is_one)
        out = layer(x)
        assert ("_LoraProduct" in type(out.grad_fn).__name__) is is_one
        results.append((out, *torch.autograd.grad(out.pow(3).sum(), inputs)))
    for value, wanted in zip(*results, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_triton_kernels_match_pytorch_in_the_interpreter():
    """Their arithmetic, without a card, against PyTorch in fp64."""
    pytest.importorskip("triton", reason="Triton is not installed")
    script = Path(__file__).resolve().parents[1] / "support" / "interpreted_kernels.py"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(script.parents[2])}
    result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in result.stderr:
        pytest.skip("this Triton's interpreter does not know this NumPy")
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout)
    assert len(errors) > 10
    assert {name: error for name, error in errors.items() if not error < (1e-2 if "16" in name else 1e-5)} == {}
