"""Train a finished concept further: `--continue-from` starts from its embeddings and its LoRA.

The first step starts from exactly what the concept's file holds. The optimizer starts anew: its moments are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ...concepts.concept import Concept, Lora
from ...concepts.library import Entry, Library
from ...config import DreamboothSettings, TextualInversionSettings, TrainingSettings
from ...errors import FieldError, UnknownConcept
from ...prompts import Token

_FIELD = "continue_from"


def find_start(settings: TrainingSettings, base_kind: str | None) -> Entry | None:
    """Return the library's entry of the concept to start from, None if the run starts anew. base_kind: of the model
    that is trained, None if it is not known yet. Raises FieldError if the concept does not fit or is not there."""
    if settings.continue_from is None:
        return None
    try:
        entry = Library(settings.library).find(Token.parse(settings.continue_from))
    except UnknownConcept as error:
        raise FieldError(_FIELD, f"{_FIELD} {settings.continue_from}: it is not in the library.", error.hint) from None
    if entry.damaged or entry.card is None:
        raise _misfit_error(entry, "it is damaged.", "Choose another version.")
    if base_kind and entry.card.base != base_kind:
        raise _misfit_error(entry, f"it is of {entry.card.base}, the model is of {base_kind}.", "Change the model.")
    if isinstance(settings, DreamboothSettings):
        _check_dreambooth(settings, entry)
    elif isinstance(settings, TextualInversionSettings):
        _check_inversion(settings, entry)
    return entry


def _check_dreambooth(settings: DreamboothSettings, entry: Entry) -> None:
    if settings.method != "lora":
        reason = "trains the embeddings alone at first" if settings.method == "pivotal" else "trains all weights"
        raise FieldError("method", f"method {settings.method} {reason}; no concept can be continued.", "Take lora.")
    if entry.kinds:
        raise _misfit_error(entry, "it changes layers in other ways than a plain LoRA.")
    if entry.lora_rank and entry.lora_rank != settings.rank:
        raise FieldError("rank", f"rank must be {entry.lora_rank}, as that of {entry.token}, got {settings.rank}.")


def _check_inversion(settings: TextualInversionSettings, entry: Entry) -> None:
    if not entry.vectors or entry.lora_rank or entry.kinds:
        raise _misfit_error(entry, "it has a LoRA; textual inversion trains embeddings only.", "Train a LoRA.")
    if settings.vectors not in (None, entry.vectors):
        problem = f"vectors must be {entry.vectors}, as those of {entry.token}, got {settings.vectors}."
        raise FieldError("vectors", problem)


def _misfit_error(entry: Entry, problem: str, hint: str = "") -> FieldError:
    return FieldError(_FIELD, f"{_FIELD} {entry.token}: {problem}", hint)


def load_start(settings: TrainingSettings, base_kind: str) -> Concept | None:
    """Return the concept to start from, None if the run starts anew. Raises UserError."""
    entry = find_start(settings, base_kind)
    return Library(settings.library).get(entry.token) if entry else None


@torch.no_grad()
def copy_lora(trained: Mapping[str, nn.Parameter], lora: Lora) -> None:
    """Copy a concept's LoRA into trainable parameters. Raises FieldError if it is of other layers."""
    names = {name.split(".", 1)[0] for name in trained}
    if names != lora.layers.keys():
        raise FieldError(
            _FIELD,
            f"{_FIELD} names a concept with a LoRA of {len(lora.layers)} layers, this training is of {len(names)}.",
            "Train the same layers (targets), and the text encoder if it was trained.",
        )
    for name, layer in lora.layers.items():
        down, up = trained[f"{name}.lora_down.weight"], trained[f"{name}.lora_up.weight"]
        if down.shape != layer.down.shape or up.shape[:2] != layer.up.shape[:2]:
            raise FieldError("rank", f"rank must be that of the concept to continue: {layer.rank}, in {name}.")
        down.copy_(torch.from_numpy(layer.down.copy()).float())
        scaled = torch.from_numpy(layer.up.copy()).float() * (layer.alpha / layer.rank)  # alpha is the rank here
        up.copy_(scaled.reshape(up.shape))
