"""The noise schedule that a model was trained with, always in fp32, whatever precision the model runs in.

In bf16 a thousand noise levels collapse to 192, so noising and targets stay in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving diffusion (Ho et al. 2020, eq. 4) with `len(alphas_cumprod)` discrete steps."""

    alphas_cumprod: Tensor  # (T,) fp32, on the base's device
    prediction_type: Literal["epsilon", "v_prediction"]

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Add noise: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise; latents and noise (B, C, h, w), t (B,)."""
        signal, sigma = self._at(t)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the training target: the noise, or the velocity (Salimans and Ho 2022, section 2.4)."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._at(t)
        return signal * noise - sigma * latents

    def predict_x0(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """Compute x_0 from the prediction at x_t: `mix` and `target` solved for the latents; (B, C, h, w), t (B,)."""
        signal, sigma = self._at(t)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * predicted) / signal
        return signal * noisy - sigma * predicted

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()
