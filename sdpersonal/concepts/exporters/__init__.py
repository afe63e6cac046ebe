"""Export concepts for other programs, one module each, with numpy only. Every file's header says what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

from ...errors import UserError
from ..concept import Concept
from . import diffusers, onetrainer, sd_concepts_library, simple
from .export import Export
from .readme import front_matter, readme

__all__ = ["FORMATS", "Export", "Format", "export"]

Format = Literal["native", "diffusers", "a1111", "comfyui", "invokeai", "kohya", "onetrainer", "sd-concepts-library"]

FORMATS: dict[str, Callable[[Concept], Export]] = {
    "native": simple.native,
    "diffusers": diffusers.write,
    "a1111": simple.a1111,
    "comfyui": simple.comfyui,
    "invokeai": simple.invokeai,
    "kohya": simple.kohya,
    "onetrainer": onetrainer.write,
    "sd-concepts-library": sd_concepts_library.write,
}


def export(concept: Concept, format: Format) -> Export:
    """Build the files of one format and a README.md for their recipient. Raises UserError where it cannot hold them."""
    if format not in FORMATS:
        raise UserError(f"Unknown export format '{format}'.", f"Choose one of {', '.join(get_args(Format))}.")
    result = FORMATS[format](concept)
    result = dataclasses.replace(result, notes=(*result.notes, *_general_notes(concept, format)))
    text = readme(concept, result)
    if format == "sd-concepts-library":
        text = f"{front_matter(sd_concepts_library.hub_facts(concept))}\n\n{text}"
    return dataclasses.replace(result, files=result.files | {"README.md": text.encode()})


def _general_notes(concept: Concept, format: Format) -> list[str]:
    notes = []
    if concept.card.base == "tiny":
        notes.append(
            "It was made for sdpersonal's built-in model, which no other program has"
            + (": install sdpersonal beside it." if format == "diffusers" else "; with other models it is of no use.")
        )
    if concept.card.method == "dreambooth-full":
        notes.append(
            "It was trained on the whole model. This is the part of the change that a LoRA holds; the model itself "
            "stayed in the folder of its training."
        )
    return notes
