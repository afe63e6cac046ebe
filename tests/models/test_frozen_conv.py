"""Convolutions of a frozen model against PyTorch's own."""

import pytest
import torch
from torch import nn

from sdpersonal.models import load_base
from sdpersonal.models.frozen_conv import FrozenConv2d, use_frozen_convs

SMALL = {"in_channels": 6, "out_channels": 8, "kernel_size": 3}
LARGE = {"in_channels": 832, "out_channels": 576, "kernel_size": 3}  # weights beyond a core's cache


def pair(**shape):
    """PyTorch's convolution, and a frozen one with its weights."""
    torch.manual_seed(0)
    plain = nn.Conv2d(**shape)
    frozen = nn.Conv2d(**shape)
    frozen.load_state_dict(plain.state_dict())
    use_frozen_convs(frozen.requires_grad_(False))
    assert type(frozen) is FrozenConv2d
    return plain, frozen


def kept(conv, x):
    """Numbers that the backward pass keeps besides the weights."""
    sizes = {}

    def pack(tensor):
        if tensor.data_ptr() != conv.weight.data_ptr():
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = conv(x)
    return out, sum(sizes.values())


@pytest.mark.parametrize("sides", [(1, 5, 4), (2, 9, 8)])
@pytest.mark.parametrize(
    "shape",
    [
        SMALL | {"padding": 1},
        SMALL | {"padding": 1, "stride": 2},
        SMALL | {"bias": False},
        SMALL | {"kernel_size": (1, 3), "padding": (0, 1)},
        LARGE | {"padding": 1},
        LARGE,
    ],
)
def test_output_and_gradient_equal_those_of_pytorch(shape, sides):
    plain, frozen = pair(**shape)
    x = torch.randn(sides[0], shape["in_channels"], *sides[1:], requires_grad=True)
    expected, answer = plain(x), frozen(x)
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-4)
    direction = torch.randn_like(expected)
    (wanted_gradient,) = torch.autograd.grad(expected, x, direction)
    (gradient,) = torch.autograd.grad(answer, x, direction)
    torch.testing.assert_close(gradient, wanted_gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sides", [(1, 4, 4), (1, 16, 16)])
def test_bf16_gradients_match_those_of_pytorch(sides):
    plain, frozen = (conv.bfloat16() for conv in pair(**LARGE, padding=1))
    x = torch.randn(sides[0], 832, *sides[1:], dtype=torch.bfloat16, requires_grad=True)
    gradients = [torch.autograd.grad(conv(x).float().square().sum(), x)[0].float() for conv in (plain, frozen)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_the_input_is_not_saved_for_the_backward_pass(shape):
    plain, frozen = pair(**shape, padding=1)
    x = torch.randn(1, shape["in_channels"], 8, 8, requires_grad=True)
    assert kept(plain, x * 1)[1] >= x.numel()
    assert kept(frozen, x * 1)[1] == 0


def test_trainable_weights_get_their_gradient():
    plain, frozen = pair(**SMALL)
    frozen.requires_grad_(True)
    x = torch.randn(1, 6, 8, 8, requires_grad=True)
    for conv in (plain, frozen):
        conv(x).square().sum().backward()
    torch.testing.assert_close(frozen.weight.grad, plain.weight.grad, atol=0, rtol=0)


def test_the_output_without_gradients_is_bitwise_equal_to_pytorch():
    plain, frozen = pair(**LARGE, padding=1)
    x = torch.randn(1, 832, 8, 8)
    assert torch.equal(plain(x), frozen(x))
    with torch.no_grad():
        assert torch.equal(plain(x), frozen(x.requires_grad_(True)))


@pytest.mark.parametrize("unusual", [{"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding_mode": "reflect"}])
def test_unsupported_convolutions_are_not_replaced(unusual):
    model = nn.Sequential(nn.Conv2d(**SMALL | unusual))
    use_frozen_convs(model)
    assert type(model[0]) is nn.Conv2d


def test_a_loaded_base_has_frozen_convolutions_in_its_unet():
    base = load_base("tiny", device="cpu")
    kinds = {type(module) for module in base.unet.modules() if isinstance(module, nn.Conv2d)}
    assert kinds == {FrozenConv2d}
