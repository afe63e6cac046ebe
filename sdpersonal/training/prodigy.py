"""Prodigy (Mishchenko and Defazio 2024, arXiv 2306.06101): Adam whose step size is estimated while it runs.

It equals the authors' package `prodigyopt` with bias correction and safeguarded warm-up, which the tests compare with,
and is not replaced by it for two reasons. The package refuses groups with different learning rates, and a LoRA needs
them: the token's embeddings train up to ten times as fast. Here each group has its own rate, relative to the others: x
trained at rate r is y = x/r trained at rate 1, since Adam ignores the scale of a gradient. And the package reads two
numbers per parameter from the device at every step; here the estimate stays on the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Prodigy(torch.optim.Optimizer):
    """Prodigy with parameter groups. Their initial rates are relative to each other; an `lr` set later scales them.

    A group with `lr` 0, and a parameter without a gradient, are not changed.
    """

    def __init__(
        self,
        groups: list[dict],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        d0: float = 1e-6,
    ):
        super().__init__(groups, {"lr": 1.0, "weight_decay": 0.0, "betas": betas, "eps": eps})
        self._d0 = d0
        for group in self.param_groups:
            group["own_rate"] = group["lr"]
            group["k"] = 0  # steps of this group
        first = self.param_groups[0]["params"][0]
        # Stored in a group, so that they are saved with it. d: the estimated distance to the solution.
        self.param_groups[0] |= {
            "d": first.new_tensor(d0),
            "numerator": first.new_tensor(0.0),
        }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever used
        first_group = self.param_groups[0]
        d = first_group["d"]
        beta3 = math.sqrt(first_group["betas"][1])
        numerator, denominator = beta3 * first_group["numerator"], torch.zeros_like(d)
        active_groups = []
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            self._init_state(parameters)
            if not parameters or group["lr"] == 0:
                continue
            group["k"] += 1
            rate = d * (group["lr"] / group["own_rate"] * _bias_correction(group["k"], *group["betas"]))
            dot_product, denominator_term = self._update_moments(group, parameters, beta3)
            numerator = numerator + d / self._d0 * rate * dot_product
            denominator = denominator + denominator_term
            active_groups.append((group, parameters, rate))
        first_group["numerator"] = numerator
        first_group["d"] = torch.where(denominator > 0, torch.maximum(d, numerator / denominator), d)
        for group, parameters, rate in active_groups:
            self._move(group, parameters, rate, first_group["d"])

    def _update_moments(self, group: dict, parameters: list[Tensor], beta3: float) -> tuple[Tensor, Tensor]:
        """Update the moments; return <g, x0 - x> and the 1-norm of the weighted sum of gradients."""
        d = self.param_groups[0]["d"]
        beta1, beta2 = group["betas"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        displacement = torch._foreach_sub(self._all(parameters, "start"), parameters)
        dot_product = torch.stack([product.sum() for product in torch._foreach_mul(gradients, displacement)]).sum()
        scaled = torch._foreach_mul(gradients, d)
        first, second, gradient_sum = (self._all(parameters, key) for key in ("exp_avg", "exp_avg_sq", "gathered"))
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, scaled, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, scaled, scaled, value=1 - beta2)
        torch._foreach_mul_(gradient_sum, beta3)
        torch._foreach_add_(gradient_sum, torch._foreach_mul(scaled, d * (group["own_rate"] / self._d0)))
        return dot_product, torch.stack(torch._foreach_norm(gradient_sum, 1)).sum()

    def _init_state(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "start": parameter.detach().clone(),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                    "gathered": torch.zeros_like(parameter),
                }

    def _move(self, group: dict, parameters: list[Tensor], rate: Tensor, d: Tensor) -> None:
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["weight_decay"] * rate)
        denominator = torch._foreach_sqrt(self._all(parameters, "exp_avg_sq"))
        torch._foreach_add_(denominator, [d * group["eps"]] * len(denominator))
        update = torch._foreach_div(self._all(parameters, "exp_avg"), denominator)
        torch._foreach_mul_(update, rate * group["own_rate"])
        torch._foreach_sub_(parameters, update)

    def _all(self, parameters: list[Tensor], key: str) -> list[Tensor]:
        return [self.state[parameter][key] for parameter in parameters]


def _bias_correction(step: int, beta1: float, beta2: float) -> float:
    return math.sqrt(1 - beta2**step) / (1 - beta1**step)
