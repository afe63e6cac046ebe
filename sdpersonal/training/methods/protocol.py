"""Define the protocol of a training method, as the loop and the run use it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ...concepts.concept import Lora
from ..dataset import Batch, CaptionPieces
from ..loss_inputs import LossInputs


class Method(Protocol):
    """Defines what trains, its loss, and the result."""

    name: str
    trigger: str  # words that the token stands for if it has no embeddings

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Return the precision of its predictions under autocast; None: without autocast, in that of the weights."""

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """Return the token's embeddings per text encoder, (n, width) fp32; {} if it has none."""

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return every parameter that is ever trained, fp32, by a name that is the same in all runs."""

    def param_groups(self) -> list[dict]:
        """Return the optimizer's parameter groups, with their `lr` and `weight_decay`."""

    def learning_rates(self, step: int) -> list[float]:
        """Return each group's learning rate at a step, before the schedule's factor."""

    def inputs(self, batch: Batch) -> LossInputs:
        """Return what the loss of a batch is computed from, on the CPU; the device is not used."""

    def phase(self, step: int) -> int:
        """Return a number that is equal for steps that train the same parameters in the same way. step: from 0."""

    def loss(self, inputs: LossInputs, step: int) -> Tensor:
        """Return the loss per sample, (B,): a function of tensors on the device. step: only its phase matters.

        Parameters that this step does not train get no gradient.
        """

    def caption_pieces(self, caption: str) -> CaptionPieces:
        """Split a caption with {} for the subject into the pieces that `encode_captions` takes."""

    def lora(self) -> Lora | None:
        """Return the LoRA of the concept, if the method trains one."""

    def finish(self, run: Path) -> dict[str, float]:
        """Write the method's files besides the concept to the run folder; return figures for the card."""

    def close(self) -> None:
        """Restore the base model to its state before training."""
