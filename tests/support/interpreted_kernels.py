"""Print relative errors of the Triton kernels in Triton's interpreter, as JSON. Run with TRITON_INTERPRET=1."""

import json

import torch
from torch.nn import functional as F

from sdpersonal.models import triton_kernels

# (channels, height, width, groups): 10 to 80 channels a group; 17 x 16 positions are more than one program's.
SHAPES = [(320, 17, 16, 32), (640, 3, 5, 32), (960, 2, 3, 32), (1280, 4, 4, 32), (1920, 2, 2, 32), (2560, 2, 1, 32)]
SHAPES += [(32, 17, 16, 32), (48, 20, 20, 6), (96, 4, 5, 32)]


def relative(value, wanted):
    return ((value.double() - wanted).abs().max() / wanted.abs().max()).item()


def group_norm_errors(shape, dtype, silu, shifted):
    channels, height, width, groups = shape
    x = torch.randn(2, channels, height, width) * 2 + 5 * torch.randn(1, channels, 1, 1)
    x = x.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias, shift_bias = (torch.randn(channels).to(dtype) for _ in range(3))
    shift = torch.randn(2, channels).to(dtype)
    extra = {"shift": shift, "shift_bias": shift_bias} if shifted else {}
    y, same = triton_kernels.group_norm(x, groups, weight, bias, 1e-5, silu=silu, **extra)
    exact = x.detach().double().requires_grad_()
    z = exact + shift.double()[:, :, None, None] + shift_bias.double()[:, None, None] if shifted else exact
    expected = F.group_norm(z, groups, weight.double(), bias.double(), 1e-5)
    expected = F.silu(expected) if silu else expected
    first, second = torch.randn_like(x), torch.randn_like(x)
    (gradient,) = torch.autograd.grad([y, same], x, [first, second])
    (wanted,) = torch.autograd.grad([expected, exact * 1], exact, [first.double(), second.double()])
    assert y.is_contiguous(memory_format=torch.channels_last)
    return relative(y, expected), relative(gradient, wanted)


def geglu_errors(*shape):
    x = torch.randn(*shape, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    value, gate = exact.chunk(2, -1)
    y, expected = triton_kernels.geglu(x), value * F.gelu(gate)
    direction = torch.randn_like(y)
    (gradient,), (wanted,) = (
        torch.autograd.grad(y, x, direction),
        torch.autograd.grad(expected, exact, direction.double()),
    )
    return relative(y, expected), relative(gradient, wanted)


def layer_norm_errors(columns):
    x, added = ((torch.randn(2, 3, columns) + 3).requires_grad_() for _ in range(2))
    weight, bias = torch.randn(2, columns)
    y, total = triton_kernels.layer_norm(x, weight, bias, 1e-5, added)
    exact = (x + added).detach().double().requires_grad_()
    expected = F.layer_norm(exact, (columns,), weight.double(), bias.double(), 1e-5)
    first, second = torch.randn(2, *x.shape)
    gradient, same = torch.autograd.grad([y, total], [x, added], [first, second])
    (wanted,) = torch.autograd.grad([expected, exact * 1], exact, [first.double(), second.double()])
    assert torch.equal(gradient, same)
    y_alone, _ = triton_kernels.layer_norm(x + added, weight, bias, 1e-5)
    return relative(y, expected), relative(total, exact), relative(gradient, wanted), relative(y_alone, expected)


def sum_errors():
    first, second = (torch.randn(2, 40, 5, 6).to(memory_format=torch.channels_last) for _ in range(2))
    bias = torch.randn(40)
    out = triton_kernels.add_with_bias(first, second, bias)
    return (relative(out, first.double() + second.double() + bias.double()[:, None, None]),)


def join_errors():
    """0 where joining and its gradient copy exactly."""
    first, second = (
        torch.randn(2, channels, 3, 3).to(memory_format=torch.channels_last).requires_grad_() for channels in (40, 264)
    )
    joined, wanted = triton_kernels.join(first, second), torch.cat([first, second], dim=1)
    direction = torch.randn_like(wanted)
    pairs = zip(*(torch.autograd.grad(x, (first, second), direction) for x in (joined, wanted)), strict=True)
    return relative(joined, wanted.double()), *(relative(value, other.double()) for value, other in pairs)


def main():
    torch.manual_seed(0)
    errors = {}
    for number, shape in enumerate(SHAPES):
        errors[f"norm {shape}"] = group_norm_errors(shape, torch.float32, number % 3 != 0, number % 2 == 0)
    for dtype in (torch.float16, torch.bfloat16):
        errors[f"norm {dtype}"] = group_norm_errors(SHAPES[1], dtype, True, True)
    errors["geglu"], errors["geglu of an odd width"] = geglu_errors(2, 9, 640), geglu_errors(3, 200)
    errors |= {f"layer norm of {columns}": layer_norm_errors(columns) for columns in (40, 320, 640, 1280)}
    errors["join"] = join_errors()
    errors["sum"] = sum_errors()
    print(json.dumps({name: max(values) for name, values in errors.items()}))


if __name__ == "__main__":
    main()
