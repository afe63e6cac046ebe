"""Read checkpoints of a training run as concepts with their own tokens: `<me/duck-step-120>`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UserError, printable
from ...prompts import Token
from ...training.run_dir import checkpoint_folder, checkpoint_steps

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...concepts.concept import Concept
    from ...generation import ConceptSource
    from ...models import StableDiffusion


@dataclass(frozen=True)
class CheckpointRun:
    """A run's folder. token: of the concept that it trains; steps: those with a checkpoint, ascending."""

    folder: Path
    token: Token
    steps: tuple[int, ...]
    settings: Mapping[str, object]

    @classmethod
    def open(cls, folder: Path) -> CheckpointRun:
        """Open a run. Raises UserError if it has no checkpoint, or none that a token can refer to."""
        steps = checkpoint_steps(folder)
        if not steps:
            raise UserError(
                f"{printable(str(folder))} holds no checkpoint.",
                "Give the folder of a run, for example runs/me-duck-...",
            )
        settings = _read_settings(checkpoint_folder(folder, steps[-1]))
        if settings.get("method") == "dreambooth-full":
            raise UserError(
                "A checkpoint of --method full is a whole model, not a concept.", "Compare finished runs instead."
            )
        token = settings.get("token")
        if not isinstance(token, str):
            raise _damaged_error(checkpoint_folder(folder, steps[-1]))
        return cls(folder, Token.parse(token), tuple(steps), settings)

    def token_at(self, step: int) -> Token:
        return replace(self.token, name=f"{self.token.name}-step-{step}")

    def concept(self, step: int, base: StableDiffusion) -> Concept:
        """Build the concept that the run would have saved at this step: from the EMA weights, if there are any.

        Raises UserError if the checkpoint is damaged or of another model.
        """
        if self.settings.get("base") != base.version:
            raise UserError(
                f"{printable(str(self.folder))} was trained on another base than {printable(base.name)}.",
                "Give its --base.",
            )
        from ...training.checkpoint import READ_ERRORS

        folder = checkpoint_folder(self.folder, step)
        try:
            return self._build(_load_weights(folder), step, base)
        except READ_ERRORS as error:  # whole, but not of a concept
            raise _damaged_error(folder) from error

    def _build(self, weights: Mapping[str, Tensor], step: int, base: StableDiffusion) -> Concept:
        from ...concepts.card import Card
        from ...concepts.concept import Concept
        from ...models.lora import to_lora

        lora = {key: tensor for key, tensor in weights.items() if not key.startswith("rows.")}
        noun = str(self.settings.get("class_noun") or self.settings.get("init") or self.settings.get("kind", ""))
        card = Card(base=base.kind, class_noun=noun[:100], method=str(self.settings.get("method", "")), steps=step)
        return Concept(
            replace(self.token_at(step), version=1), card, _embeddings(weights, base), to_lora(lora) if lora else None
        )


class CheckpointConcepts:
    """A library together with the checkpoints of a run. Raises as `CheckpointRun.concept`."""

    def __init__(self, library: ConceptSource, run: CheckpointRun, base: StableDiffusion):
        self._library = library
        self._concepts_by_token = {run.token_at(step): run.concept(step, base) for step in run.steps}

    def get(self, token: Token) -> Concept:
        return self._concepts_by_token.get(token) or self._library.get(token)


def _embeddings(weights: Mapping[str, Tensor], base: StableDiffusion) -> dict[str, np.ndarray]:
    """Return embeddings as prompts use them: training keeps them at the norm that they would have."""
    from ...training.methods.token_embedding import clip_norm, max_embedding_norm

    embeddings = {}
    for name, vectors in weights.items():
        if name.startswith("rows."):
            key = name.removeprefix("rows.")
            embeddings[key] = clip_norm(vectors, max_embedding_norm(base.encoders[key])).numpy()
    return embeddings


def _load_weights(folder: Path) -> dict[str, Tensor]:
    """Load the trained weights by name: the EMA weights, if there are any."""
    from ...training.checkpoint import READ_ERRORS, read_manifest, read_tensors

    weights: dict[str, dict[str, Tensor]] = {"value": {}, "average": {}}
    try:
        for key, tensor in read_tensors(folder, read_manifest(folder)):
            kind, _, name = key.partition(".")
            if kind in weights:
                weights[kind][name] = tensor.float()
    except READ_ERRORS as error:
        raise _damaged_error(folder) from error
    return weights["value"] | {key: tensor for key, tensor in weights["average"].items() if key in weights["value"]}


def _read_settings(folder: Path) -> Mapping[str, object]:
    from ...training.checkpoint import READ_ERRORS, read_manifest

    try:
        return read_manifest(folder, check_sum=False)["run"]
    except READ_ERRORS as error:
        raise _damaged_error(folder) from error


def _damaged_error(folder: Path) -> UserError:
    return UserError(f"The checkpoint {printable(str(folder))} is damaged.", "Remove it, or give another run.")
