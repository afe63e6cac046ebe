"""Save memory and time in convolutions of a frozen model while something before them is trained.

PyTorch keeps a convolution's input for the gradient of its weights even if they are frozen; the gradient of its input
needs only the weights. And on a CPU oneDNN converts the weights to its own layout at every call, which for a small
image takes longer than the convolution; there it is computed as a matrix product.

The sums are the same, in another order in the matrix product. Generation, and a UNet that is itself trained, use the
plain convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as conv_grad

_MATMUL_MAX_POSITIONS = 64  # positions; with more, the convolution takes longer than converting its weights
_MATMUL_MIN_WEIGHTS = 1 << 22  # elements in the weights; with fewer, converting them costs little


class FrozenConv2d(nn.Conv2d):
    """A convolution that does not keep its input for the backward pass if its weights are frozen.

    runs_channels_last: whether this input is convolved in channels_last; set by `fast_blocks.use_fast_blocks`.
    """

    runs_channels_last: Callable[[Tensor], bool] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.weight.requires_grad else self.convolve(x, self.bias)

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with the frozen weights and this bias."""
        if self.runs_channels_last and self.runs_channels_last(x):
            if self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0):
                return _pointwise(x, self.weight, bias)
            self._store_channels_last()
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self._conv_forward(x, self.weight, bias)
        return _FrozenConvFunction.apply(x, self.weight, bias, self.stride, self.padding)

    def _store_channels_last(self) -> None:
        """Lay out the weights once, or cuDNN does so in every call. Never in a CUDA graph: each replay would do it."""
        weight = self.weight
        if not weight.is_contiguous(memory_format=torch.channels_last) and not torch.cuda.is_current_stream_capturing():
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a 1x1 convolution in channels_last: a matrix product, which adds its bias itself."""
    rows = x.permute(0, 2, 3, 1)  # (B, H, W, in)
    out = F.linear(rows.flatten(0, 2), weight.flatten(1), bias)
    return out.view(*rows.shape[:3], -1).permute(0, 3, 1, 2)


def use_frozen_convs(model: nn.Module) -> None:
    """Turn every plain convolution of a model into a `FrozenConv2d`; its weights, names and hooks stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_supported(module):
            module.__class__ = FrozenConv2d


def _is_supported(module: nn.Conv2d) -> bool:
    padded = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return padded and module.groups == 1 and module.dilation == (1, 1)


class _FrozenConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        ctx.use_matmul = _is_matmul_faster(x, weight, stride)
        if not ctx.use_matmul:
            return F.conv2d(x, weight, bias, stride, padding)
        columns = F.unfold(x, weight.shape[2:], padding=padding)  # (B, in k k, positions)
        out = (weight.flatten(1) @ columns).view(*_output_shape(x, weight, padding))  # (B, out, h, w)
        return out if bias is None else out.add_(bias[:, None, None])

    @staticmethod
    def backward(ctx, grad: Tensor):
        (weight,) = ctx.saved_tensors
        if not ctx.use_matmul:
            grad_input = _input_gradient(ctx.shape, weight, grad, ctx.stride, ctx.padding)
        else:
            columns = _transposed_matmul(weight.flatten(1), grad.flatten(2))
            grad_input = F.fold(columns, ctx.shape[2:], weight.shape[2:], padding=ctx.padding)
        return grad_input, None, None, None, None


def _input_gradient(shape: torch.Size, weight: Tensor, grad: Tensor, stride, padding) -> Tensor:
    if not grad.is_cuda:
        return conv_grad.conv2d_input(shape, weight, grad, stride, padding)
    # PyTorch's wants an input, only for its shape and layout. Its own stand-in is an expanded number without a layout.
    layout = torch.channels_last if weight.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    stand_in = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
    masks = (True, False, False)
    return torch.ops.aten.convolution_backward(
        grad, stand_in, weight, None, stride, padding, (1, 1), False, (0, 0), 1, masks
    )[0]


def _is_matmul_faster(x: Tensor, weight: Tensor, stride: tuple[int, ...]) -> bool:
    positions = x.shape[0] * x.shape[2] * x.shape[3]
    return (
        x.device.type == "cpu"
        and stride == (1, 1)
        and positions <= _MATMUL_MAX_POSITIONS
        and weight.numel() >= _MATMUL_MIN_WEIGHTS
    )


def _transposed_matmul(weight: Tensor, grad: Tensor) -> Tensor:
    """Compute weight.T @ grad: (out, K) and (B, out, positions) to (B, K, positions)."""
    if weight.dtype == torch.float32:
        return weight.t() @ grad
    # In bf16 oneDNN copies a transposed weight: 95 ms instead of 30 for 2560 channels to 1280.
    return (grad.transpose(1, 2) @ weight).transpose(1, 2)


def _output_shape(x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> tuple[int, ...]:
    height, width = (x.shape[2 + i] + 2 * padding[i] - weight.shape[2 + i] + 1 for i in range(2))
    return len(x), len(weight), height, width
