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

TEXTURE = 0.3  # share of the styled version's details; with more of them its shapes return
MIN_CONTRAST = 0.5  # share of the image's variance that it keeps; predictions of a pale style are paler than its photos
_DETAIL = 3  # latents, the side of the mean that details differ from
# Coefficients of x, x^3 and x^5. The first bring singular values up to 1 between 0.6 and 1.3, by a factor of 3.4 each
# time (Jordan et al. 2024, "Muon"); the others converge to 1 from there.
_FAST, _FAST_ITERATIONS = (3.4445, -4.7750, 2.0315), 10
_EXACT, _EXACT_ITERATIONS = (15 / 8, -10 / 8, 3 / 8), 6
_REGULARIZATION = 1e-3  # of variances, which are about 1: a channel without contrast has no direction to map


def apply_style(x0: Tensor, styled: Tensor, num_subjects: int = 1) -> Tensor:
    """Return x_0 with the colours and a part of the texture of `styled`, both (B, C, h, w).

    num_subjects: rows are the images of that many subjects, subject by subject; those of one picture have one map.
    """
    coloured = match_statistics(x0, styled, num_subjects)
    result = coloured + TEXTURE * _details(styled - coloured)
    is_finite = torch.isfinite(x0).all() & torch.isfinite(styled).all()  # on the device: nothing waits for it
    return torch.where(is_finite, result, styled)  # what is not finite has no statistics; decoding it raises


def match_statistics(x0: Tensor, styled: Tensor, num_subjects: int = 1) -> Tensor:
    """Map the channels of x_0 linearly so that their means and covariances are those of `styled`.

    The covariance is enlarged where the sum of its variances is below `MIN_CONTRAST` times that of x_0.
    """
    by_picture, target = (x.unflatten(0, (num_subjects, -1)).permute(1, 2, 0, 3, 4) for x in (x0, styled))
    channels = by_picture.flatten(2).double()  # (B / K, C, K h w)
    mean, covariance = _statistics(channels)
    styled_mean, styled_covariance = _statistics(target.flatten(2).double())
    styled_covariance = styled_covariance * (MIN_CONTRAST * _trace(covariance) / _trace(styled_covariance)).clamp(min=1)
    mapped = _transport(covariance, styled_covariance) @ (channels - mean) + styled_mean
    return mapped.view(by_picture.shape).permute(2, 0, 1, 3, 4).flatten(0, 1).to(x0.dtype)


def _statistics(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Return means (B, C, 1) and covariances (B, C, C) of channels (B, C, n), in fp64."""
    mean = channels.mean(2, keepdim=True)
    centred = channels - mean
    identity = torch.eye(channels.shape[1], dtype=channels.dtype, device=channels.device)
    return mean, centred @ centred.transpose(1, 2) / channels.shape[2] + _REGULARIZATION * identity


def _trace(matrices: Tensor) -> Tensor:
    """Return the sums of the diagonals of (B, C, C), as (B, 1, 1)."""
    return matrices.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]


def _transport(source: Tensor, target: Tensor) -> Tensor:
    """Return the symmetric T with T S T = T', for symmetric positive definite S and T' (B, C, C), in fp64.

    With S = L L^t and T' = K K^t it is L^-t (L^t K K^t L)^1/2 L^-1, and that root is U^t K^t L with the orthogonal
    factor U of K^t L. So it takes products only: `eigh` would wait for a card.
    """
    lower, target_lower = torch.linalg.cholesky_ex(torch.cat([source, target]))[0].chunk(2)
    product = target_lower.transpose(1, 2) @ lower
    root = _orthogonal_factor(product).transpose(1, 2) @ product
    half = torch.linalg.solve_triangular(lower, root, upper=False, left=False)  # root L^-1
    transport = torch.linalg.solve_triangular(lower.transpose(1, 2), half, upper=True)
    return (transport + transport.transpose(1, 2)) / 2


def _orthogonal_factor(matrix: Tensor) -> Tensor:
    """Return U of the polar decomposition U H by iterations without inverses (Bjorck and Bowie 1971).

    Their polynomial of degree 5 multiplies a small singular value by 15/8 only; others, which end near 1, come first.
    """
    x = matrix / matrix.flatten(1).norm(dim=1)[:, None, None]
    for a, b, c in (_FAST,) * _FAST_ITERATIONS + (_EXACT,) * _EXACT_ITERATIONS:
        square = x.transpose(1, 2) @ x
        x = torch.baddbmm(x, x, torch.baddbmm(square, square, square, beta=b, alpha=c), beta=a)
    return x


def _details(x0: Tensor) -> Tensor:
    padding = _DETAIL // 2
    return x0 - F.avg_pool2d(F.pad(x0, (padding,) * 4, mode="replicate"), _DETAIL, stride=1)
