"""Speed up a frozen UNet on a CUDA card: feature maps stay in channels_last, and its blocks launch fewer kernels.

The card's convolutions are up to twice as fast in channels_last, but PyTorch's GroupNorm returns plain NCHW there, and
every convolution after it converts. With GroupNorm, SiLU and the sums beside them as Triton kernels (`triton_kernels`)
nothing is converted. On a CPU, without Triton, under autocast or where norms are trained, every block computes what
diffusers' own does, to the bit.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from .frozen_conv import FrozenConv2d

_MIN_CAPABILITY = (7, 5)  # the oldest cards that Triton supports
_MAX_LAYER_NORM = 4096  # channels: a program holds whole rows
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def use_fast_blocks(unet: nn.Module) -> None:
    """Turn a UNet's blocks into those of this module; weights, names and hooks stay. Call `use_frozen_convs` first.

    They look at each call where they are: the UNet may be moved between devices.
    """
    for module in unet.modules():
        if isinstance(module, FrozenConv2d):
            module.runs_channels_last = _is_fast
        elif (fast := FAST_BLOCKS.get(type(module))) and fast.is_supported(module):
            module.__class__ = fast
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
            module.processor.__class__ = UnscaledAttnProcessor


@functools.cache
def find_kernels(device: torch.device) -> ModuleType | None:
    """Return the module of Triton kernels if they run on this device.

    Triton compiles a part of itself with the system's C compiler, so it may be installed and still not run.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return None
    try:
        kernels = importlib.import_module(f"{__package__}.triton_kernels")
        kernels.geglu(torch.zeros(1, 512, device=device))
    except Exception:  # of whatever kind: then everything is computed as without Triton
        return None
    return kernels


def _is_fast(x: Tensor) -> bool:
    return _kernels(x) is not None


def _kernels(x: Tensor) -> ModuleType | None:
    """Return the kernels if this call uses them."""
    if not x.is_cuda or x.dtype not in _DTYPES or torch.is_autocast_enabled("cuda"):
        return None
    return find_kernels(x.device)


class FastGroupNorm(nn.GroupNorm):
    """A GroupNorm that keeps channels_last."""

    @staticmethod
    def is_supported(module: nn.Module) -> bool:
        return isinstance(module, nn.GroupNorm) and module.affine

    def forward(self, x: Tensor) -> Tensor:
        kernels = _norm_kernels(self, x)
        if kernels is None:
            return super().forward(x)
        return kernels.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, silu=False)[0]


def _norm_kernels(norm: nn.GroupNorm, x: Tensor) -> ModuleType | None:
    """Return the kernels if this norm uses them: it is frozen and has a usual shape."""
    kernels = _kernels(x)
    if kernels is None or (torch.is_grad_enabled() and (norm.weight.requires_grad or norm.bias.requires_grad)):
        return None
    is_usual = x.dim() == 4 and x.numel() and kernels.supports_group_norm(norm.num_channels, norm.num_groups)
    return kernels if is_usual else None


class FastResnetBlock2D(ResnetBlock2D):
    """A resnet block with SiLU, the time embedding and biases in the kernels of its norms and its sum."""

    @staticmethod
    def is_supported(module: nn.Module) -> bool:
        return (
            isinstance(module, ResnetBlock2D)
            and module.time_embedding_norm == "default"
            and not (module.up or module.down or module.skip_time_act)
            and isinstance(module.nonlinearity, nn.SiLU)
        )

    def forward(self, input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kernels = _norm_kernels(self.norm1, input_tensor) and _norm_kernels(self.norm2, input_tensor)
        if kernels is None or args or kwargs:
            return super().forward(input_tensor, temb, *args, **kwargs)
        x, residual = _norm_silu(kernels, self.norm1, input_tensor)
        x, bias = _without_bias(self.conv1, x)
        shift = None if self.time_emb_proj is None or temb is None else self.time_emb_proj(F.silu(temb))
        x, _ = _norm_silu(kernels, self.norm2, x, shift, bias)
        x, bias = _without_bias(self.conv2, self.dropout(x))
        if self.conv_shortcut is not None:
            residual = self.conv_shortcut(residual)
        out = residual + x if bias is None else kernels.add_with_bias(residual, x, bias)
        return out if self.output_scale_factor == 1 else out / self.output_scale_factor


def _norm_silu(
    kernels: ModuleType, norm: nn.GroupNorm, x: Tensor, shift: Tensor | None = None, shift_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return SiLU(norm(x + shift + shift_bias)), and x for what uses it beside the norm."""
    if shift is not None and ((shift.requires_grad and torch.is_grad_enabled()) or _has_hooks(norm)):
        x, shift = x + shift[:, :, None, None], None  # the kernels have no gradient for it
    if not _has_hooks(norm):
        return kernels.group_norm(
            x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=True, shift=shift, shift_bias=shift_bias
        )
    return F.silu(norm(x if shift_bias is None else x + shift_bias[:, None, None])), x


def _norm_only(kernels: ModuleType, norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return norm(x), and x for what uses it beside the norm."""
    if _has_hooks(norm):
        return norm(x), x
    return kernels.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=False)


def _without_bias(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the convolution without its bias, and the bias to add. cuDNN's adds it in a kernel of its own.

    A convolution with hooks, of a LoRA for example, is called as it is.
    """
    if not isinstance(conv, FrozenConv2d) or conv.bias is None or conv.bias.requires_grad or _has_hooks(conv):
        return conv(x), None
    return conv.convolve(x, None), conv.bias


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


class FastTransformer2DModel(Transformer2DModel):
    """A transformer on channels_last, where its positions lie one after another already."""

    @staticmethod
    def is_supported(module: nn.Module) -> bool:
        return isinstance(module, Transformer2DModel) and bool(module.is_input_continuous)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        kernels = _norm_kernels(self.norm, hidden_states)
        is_plain = not args and all(value is None for value in kwargs.values()) and not self.gradient_checkpointing
        if kernels is None or not is_plain:
            kwargs["return_dict"] = return_dict
            return super().forward(hidden_states, encoder_hidden_states, *args, **kwargs)
        batch, _, height, width = hidden_states.shape
        x, residual = _norm_only(kernels, self.norm, hidden_states)
        if not self.use_linear_projection:
            x = self.proj_in(x)
        x = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H W, C), of the same memory
        if self.use_linear_projection:
            x = self.proj_in(x)
        for block in self.transformer_blocks:
            x = block(x, encoder_hidden_states=encoder_hidden_states)
        if self.use_linear_projection:
            x = self.proj_out(x)
        x = x.view(batch, height, width, -1).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            x = self.proj_out(x)
        out = x + residual
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)


class FastTransformerBlock(BasicTransformerBlock):
    """A transformer block with the sums in the kernels of its norms."""

    @staticmethod
    def is_supported(module: nn.Module) -> bool:
        if (
            not isinstance(module, BasicTransformerBlock)
            or module.norm_type != "layer_norm"
            or hasattr(module, "fuser")
        ):
            return False
        norms = (module.norm1, module.norm2, module.norm3)
        have_weights = all(isinstance(norm, nn.LayerNorm) and norm.bias is not None for norm in norms)
        return have_weights and module.pos_embed is None and not module.only_cross_attention

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        norms = [cast(nn.LayerNorm, norm) for norm in (self.norm1, self.norm2, self.norm3)]
        kernels = _layer_norm_kernels(norms, hidden_states)
        is_plain = not args and all(value is None for value in kwargs.values()) and self._chunk_size is None
        if kernels is None or not is_plain:
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, *args, **kwargs
            )
        x, total = _layer_norm(kernels, norms[0], hidden_states)
        x, total = _layer_norm(kernels, norms[1], total, self.attn1(x, attention_mask=attention_mask))
        x = self.attn2(x, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask)
        x, total = _layer_norm(kernels, norms[2], total, x)
        return self.ff(x) + total


def _layer_norm_kernels(norms: Sequence[nn.LayerNorm], x: Tensor) -> ModuleType | None:
    """Return the kernels if these norms use them: they are frozen, and their rows fit."""
    if x.dim() != 3 or x.shape[-1] > _MAX_LAYER_NORM or not x.numel():
        return None
    is_trained = torch.is_grad_enabled() and any(norm.weight.requires_grad for norm in norms)
    return None if is_trained else _kernels(x)


def _layer_norm(
    kernels: ModuleType, norm: nn.LayerNorm, x: Tensor, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return norm(x + added), and x + added."""
    if _has_hooks(norm):
        total = x if added is None else x + added
        return norm(total), total
    return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, added)


class FastUpBlock2D(UpBlock2D):
    """Resnets on what the way down has kept, joined by a kernel: PyTorch's gradients of both would be copied."""

    @staticmethod
    def is_supported(module: nn.Module) -> bool:
        return isinstance(module, UpBlock2D)

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        upsample_size: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        kernels = _join_kernels(self, hidden_states)
        if kernels is None or args or kwargs:
            return super().forward(hidden_states, res_hidden_states_tuple, temb, upsample_size, *args, **kwargs)
        for resnet, skip in zip(self.resnets, reversed(res_hidden_states_tuple), strict=True):
            hidden_states = resnet(kernels.join(hidden_states, skip), temb)
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, upsample_size)
        return hidden_states


class FastCrossAttnUpBlock2D(CrossAttnUpBlock2D):
    """The same with a transformer after each resnet."""

    @staticmethod
    def is_supported(module: nn.Module) -> bool:
        return isinstance(module, CrossAttnUpBlock2D)

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        upsample_size: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        kernels = _join_kernels(self, hidden_states)
        if kernels is None or args or any(value is not None for value in kwargs.values()):
            kwargs["upsample_size"] = upsample_size
            return super().forward(hidden_states, res_hidden_states_tuple, temb, encoder_hidden_states, *args, **kwargs)
        layers = zip(self.resnets, self.attentions, reversed(res_hidden_states_tuple), strict=True)
        for resnet, transformer, skip in layers:
            hidden_states = resnet(kernels.join(hidden_states, skip), temb)
            hidden_states = transformer(hidden_states, encoder_hidden_states=encoder_hidden_states, return_dict=False)[
                0
            ]
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, upsample_size)
        return hidden_states


def _join_kernels(block: UpBlock2D | CrossAttnUpBlock2D, x: Tensor) -> ModuleType | None:
    """Return the kernels if this block joins with them: without diffusers' checkpoints and FreeU."""
    if block.gradient_checkpointing or getattr(block, "s1", None) or getattr(block, "b1", None):
        return None
    return _kernels(x)


class FastGEGLU(GEGLU):
    """A GEGLU with its split, GELU and product as one kernel each way."""

    @staticmethod
    def is_supported(module: nn.Module) -> bool:
        return isinstance(module, GEGLU)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kernels = _kernels(hidden_states)
        if kernels is None or args or kwargs:
            return super().forward(hidden_states, *args, **kwargs)
        return kernels.geglu(self.proj(hidden_states))


class UnscaledAttnProcessor(AttnProcessor2_0):
    """diffusers' attention without its division by a factor that is 1: a pass over the whole feature map."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if attention_mask is not None or args or kwargs or not _is_plain(attn) or hidden_states.dim() != 3:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, positions, d)
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


def _is_plain(attn: Attention) -> bool:
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k, attn.residual_connection)
    return not any(extras) and attn.rescale_output_factor == 1


FAST_BLOCKS: dict[type[nn.Module], Any] = {
    nn.GroupNorm: FastGroupNorm,
    ResnetBlock2D: FastResnetBlock2D,
    Transformer2DModel: FastTransformer2DModel,
    BasicTransformerBlock: FastTransformerBlock,
    GEGLU: FastGEGLU,
    UpBlock2D: FastUpBlock2D,
    CrossAttnUpBlock2D: FastCrossAttnUpBlock2D,
}
