"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242) with LoRA: the UNet learns the subject, and the token its own rows.

The paper names the subject by a rare syllable before the class noun, "a [V] dog". Here the token starts as the class
noun itself and its rows are learned with the LoRA, so the subject answers to its own word and the noun keeps its
meaning.

Prior preservation (section 3.3) without class pictures: on the same noisy latents the class prompt must still be
answered as the bare base answers it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..bases import Conditioning, StableDiffusion
from ..concept import Lora
from ..lora import to_lora
from .chance import generator_for
from .dataset import Batch
from .objective import diffusion_loss
from .presets import Preset
from .textual_inversion import initial_rows, with_rows

MOST_ROWS = 8


class DreamboothLora:
    name = "dreambooth-lora"

    def __init__(self, base: StableDiffusion, class_noun: str, rank: int, prior: float, preset: Preset, seed: int):
        self._base, self._class, self._prior = base, class_noun, prior
        (encoder, *_) = base.encoders.values()
        self.rows = initial_rows(base, class_noun, min(len(encoder.ids(class_noun)) or 1, MOST_ROWS))
        self._lora = base.slots.train(preset.targets, rank, generator_for("lora", seed))
        self._preset = preset
        self._rates = [group["lr"] for group in self.groups()]
        self._class_conditions: dict[str, Conditioning] = {}

    def trained(self) -> dict[str, nn.Parameter]:
        return {f"rows.{key}": rows for key, rows in self.rows.items()} | self._lora

    def groups(self) -> list[dict]:
        return [
            {"params": list(self._lora.values()), "lr": self._preset.lr, "weight_decay": 1e-2},
            {"params": list(self.rows.values()), "lr": self._preset.rows_lr, "weight_decay": 0.0},
        ]

    def rates(self, step: int) -> list[float]:
        return self._rates

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Per sample, (B,)."""
        base = self._base
        condition = base.condition([with_rows(caption, self.rows) for caption in batch.captions])
        loss = diffusion_loss(
            lambda noisy, t: base.predict(noisy, t, condition), base.schedule, batch.latents, batch.noise, batch.t
        )
        return loss + self._prior * self._prior_loss(batch) if self._prior else loss

    def _prior_loss(self, batch: Batch) -> Tensor:
        condition = Conditioning.cat([self._class_condition(caption) for caption in batch.captions])
        noisy = self._base.schedule.mix(batch.latents, batch.noise, batch.t)
        with self._base.slots.bypassed(), torch.no_grad():
            target = self._base.predict(noisy, batch.t, condition)
        return (self._base.predict(noisy, batch.t, condition) - target).pow(2).flatten(1).mean(1)

    def _class_condition(self, caption: str) -> Conditioning:
        if caption not in self._class_conditions:
            with torch.no_grad():
                self._class_conditions[caption] = self._base.condition([[caption.format(self._class)]])
        return self._class_conditions[caption]

    def lora(self) -> Lora:
        return to_lora(self._lora)

    def close(self) -> None:
        self._base.slots.clear()
