"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the update of a matrix is its momentum made orthogonal.

A convolution's weight is the matrix of its filters. On this UNet a step costs half as much again as AdamW's and
taught nearly twice as much a picture; torch.optim.Muon takes matrices alone, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# The quintic that takes singular values from (0, 1] to about 1 in five rounds (Jordan et al. 2024).
A, B, C, ROUNDS = 3.4445, -4.7750, 2.0315, 5


def orthogonal(x: Tensor) -> Tensor:
    """(N, m, n) with m <= n -> the nearest semi-orthogonal matrices, roughly: singular values of 0.7 to 1.2."""
    x = (x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).bfloat16()
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


class Muon(torch.optim.Optimizer):
    """For parameters of two or more dimensions. Rates are AdamW's: an update has the length that AdamW's would have."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = {}  # matrices of one shape go through the products together
            for weight in (p for p in group["params"] if p.grad is not None):
                update = self._with_momentum(weight, group["momentum"]).flatten(1)
                alike.setdefault(update.shape, []).append((weight, update))
            for (rows, columns), some in alike.items():
                stack = torch.stack([update for _, update in some])
                flat = orthogonal(stack.mT).mT if rows > columns else orthogonal(stack)
                length = 0.2 * max(rows, columns) ** 0.5
                for (weight, _), update in zip(some, flat, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update.reshape(weight.shape).float(), alpha=-group["lr"] * length)

    def _with_momentum(self, weight: Tensor, momentum: float) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["momentum"], momentum)  # Nesterov's look ahead


def split(model: torch.nn.Module, lr: float, apart: Sequence[str] = ()) -> tuple[torch.optim.AdamW, Muon]:
    """AdamW for vectors and the layers named in `apart`, Muon for all other weights; -> both."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrix = lambda name, p: p.ndim > 1 and not name.startswith(tuple(apart))  # noqa: E731
    rest = [p for n, p in named if not matrix(n, p)]
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return adam, Muon([p for n, p in named if matrix(n, p)], lr)
