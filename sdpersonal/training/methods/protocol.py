"""What a method of training is, to the loop and the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from ...concepts.concept import Lora
from ..dataset import Batch


class Method(Protocol):
    """What trains, what it is taught, what it leaves behind."""

    name: str
    trigger: str  # words that the token stands for where it has no rows

    @property
    def rows(self) -> dict[str, Tensor]:
        """The token's vectors for each text encoder, (n, width) fp32; {} if it has none."""

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter that is ever trained, fp32, by a name that stays the same between runs."""

    def groups(self) -> list[dict]:
        """The same parameters for an optimiser, in groups with their rates (`lr`) and decay (`weight_decay`)."""

    def learning_rates(self, step: int) -> list[float]:
        """Each group's learning rate at a step, before the schedule's factor."""

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Per sample, (B,). Parameters that this step does not train get no gradient."""

    def words(self, caption: str) -> list[str | Mapping[str, Tensor]]:
        """A caption with {} for the subject, as `condition` takes it: what the token stands for is put in."""

    def lora(self) -> Lora | None:
        """The LoRA of the concept."""

    def finish(self, run: Path) -> dict[str, float]:
        """Leave in the run's folder what the method leaves besides the concept; figures about it for the card."""

    def close(self) -> None:
        """Leave the base as it was."""
