"""Give an image the colours and the texture of its styled version while it keeps its own shapes.

A LoRA of a style also brings what its photos show: bricks behind everything, a cat's face. Colours, as the mean and the
covariance of the latents' channels, and texture, as what is finer than three latents, hold none of that. So x_0 of the
subject is mapped linearly to the channel statistics of the styled x_0 (linear optimal transport, Pitie and Kokaram
2007, "The linear Monge-Kantorovitch linear colour mapping"), and gets a part of its finest details.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEXTURE = 0.5  # share of the styled version's details; with more of them its shapes return
_DETAIL = 3  # latents, the side of the mean that details differ from
_REGULARIZATION = 1e-3  # of variances, which are about 1: a channel without contrast has no direction to map


def apply_style(x0: Tensor, styled: Tensor) -> Tensor:
    """Return x_0 with the colours and a part of the texture of `styled`, both (B, C, h, w)."""
    coloured = match_statistics(x0, styled)
    return coloured + TEXTURE * _details(styled - coloured)


def match_statistics(x0: Tensor, styled: Tensor) -> Tensor:
    """Map the channels of x_0 linearly so that their means and covariances are those of `styled`."""
    mean, covariance = _statistics(x0)
    styled_mean, styled_covariance = _statistics(styled)
    root, inverse = _power(covariance, 0.5), _power(covariance, -0.5)
    transport = inverse @ _power(root @ styled_covariance @ root, 0.5) @ inverse  # (B, C, C), symmetric
    mapped = transport @ (x0.flatten(2).double() - mean) + styled_mean
    return mapped.view(x0.shape).to(x0.dtype)


def _statistics(x0: Tensor) -> tuple[Tensor, Tensor]:
    """Return means (B, C, 1) and covariances (B, C, C) of the channels, in fp64."""
    channels = x0.flatten(2).double()
    mean = channels.mean(2, keepdim=True)
    centred = channels - mean
    identity = torch.eye(channels.shape[1], dtype=channels.dtype, device=channels.device)
    return mean, centred @ centred.transpose(1, 2) / channels.shape[2] + _REGULARIZATION * identity


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Return a power of symmetric positive definite matrices (B, C, C)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag_embed(values.clamp(min=1e-12) ** exponent) @ vectors.transpose(1, 2)


def _details(x0: Tensor) -> Tensor:
    padding = _DETAIL // 2
    return x0 - F.avg_pool2d(F.pad(x0, (padding,) * 4, mode="replicate"), _DETAIL, stride=1)
