"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242) with LoRA: trains a LoRA of the UNet and the token's embeddings.

The paper names the subject by a rare syllable before the class noun, "a [V] dog". Here the token starts as the class
noun itself and its embeddings train with the LoRA, so the subject answers to its own word and the noun keeps its
meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ...concepts.concept import Concept, Lora
from ...models import StableDiffusion
from ...models.lora import to_lora
from ..dataset import Batch, CaptionPieces
from ..loss_inputs import CaptionTokenizer, LossInputs
from ..objective import batch_loss
from ..presets import Preset
from ..rng import generator_for
from .continuation import copy_lora
from .prior_preservation import PriorLoss
from .token_embedding import embedding_for_class, insert_embeddings


@dataclass(frozen=True)
class LoraTrainingConfig:
    """The rank of the LoRA, and whether the text encoders get one too."""

    rank: int
    text: bool = False


class DreamboothLora:
    """Trains a LoRA and the token's embeddings, which start as the class noun's."""

    name = "dreambooth-lora"
    trigger = ""
    autocast_dtype = None

    def __init__(
        self,
        base: StableDiffusion,
        class_noun: str,
        lora: LoraTrainingConfig,
        preset: Preset,
        seed: int,
        prior: PriorLoss | None = None,
        prior_weight: float = 1.0,
        start: Concept | None = None,
    ):
        """start: a concept to continue; one without a LoRA, or without embeddings, starts that part anew."""
        self._base, self._preset = base, preset
        self._prior, self._prior_weight = prior, prior_weight
        self._embedding = embedding_for_class(base, class_noun, start.vectors if start else None)
        self._tokenizer = CaptionTokenizer(base, self._embedding.caption_pieces)
        self._lora = base.adapters.add_trainable(
            preset.targets, lora.rank, generator_for("lora", seed), text_encoder=lora.text
        )
        if start and start.lora:
            try:
                copy_lora(self._lora, start.lora)
            except BaseException:
                self.close()
                raise

    @property
    def snr_gamma(self) -> float | None:
        return self._preset.snr_gamma

    @property
    def trained_lora(self) -> dict[str, nn.Parameter]:
        return self._lora

    @property
    def embeddings(self) -> dict[str, Tensor]:
        return self._embedding()

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return self._embedding.named_parameters() | self._lora

    def param_groups(self) -> list[dict]:
        return [
            {"params": list(self._lora.values()), "lr": self._preset.lr, "weight_decay": 1e-2},
            self._embedding.param_group(self._preset.embedding_lr),
        ]

    def learning_rates(self, step: int) -> list[float]:
        return [self._preset.lr, self._preset.embedding_lr]

    def inputs(self, batch: Batch) -> LossInputs:
        return self._tokenizer.inputs(batch, self._prior.inputs(batch) if self._prior else None)

    def phase(self, step: int) -> int:
        return 0

    def loss(self, inputs: LossInputs, step: int) -> Tensor:
        loss = self._subject_loss(inputs)
        if self._prior is None or inputs.prior is None:
            return loss
        return loss + self._prior_weight * self._prior.loss(inputs.prior)

    def _subject_loss(self, inputs: LossInputs) -> Tensor:
        return batch_loss(self._base, self._embedding(), inputs, self._preset.snr_gamma)

    def caption_pieces(self, caption: str) -> CaptionPieces:
        return insert_embeddings(caption, self._embedding())

    def lora(self) -> Lora:
        return to_lora(self._lora)

    def finish(self, run: Path) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._base.adapters.clear()


class PivotalTuning(DreamboothLora):
    """Pivotal tuning (Roich et al. 2021, arXiv 2106.05744), with the token's embeddings as the pivot: these train alone
    first, until they are as near as words can come; then the LoRA learns the rest while they hardly move."""

    name = "dreambooth-pivotal"

    def learning_rates(self, step: int) -> list[float]:
        embedding_lr = self._preset.pivot_lr if step < self._preset.pivot_steps else self._preset.embedding_lr
        return [self._preset.lr, embedding_lr]

    def phase(self, step: int) -> int:
        return int(step >= self._preset.pivot_steps)

    def loss(self, inputs: LossInputs, step: int) -> Tensor:
        if self.phase(step):
            return super().loss(inputs, step)
        with self._base.adapters.disabled():
            return self._subject_loss(inputs)
