"""What a method of training is, to the loop."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ..concept import Lora
from .dataset import Batch


class Method(Protocol):
    """What trains, what it is taught, what it leaves behind."""

    name: str
    rows: dict[str, nn.Parameter]  # the token's vectors for each text encoder, (n, width) fp32; {} if it has none

    def trained(self) -> dict[str, nn.Parameter]:
        """Every parameter that is ever trained, fp32, by a name that stays the same between runs."""

    def groups(self) -> list[dict]:
        """The same parameters for an optimiser, in groups with their rates (`lr`) and decay (`weight_decay`)."""

    def rates(self, step: int) -> list[float]:
        """Each group's learning rate at a step, before the schedule's factor."""

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Per sample, (B,). Parameters that this step does not train get no gradient."""

    def lora(self) -> Lora | None:
        """The LoRA of the concept."""

    def close(self) -> None:
        """Leave the base as it was."""
