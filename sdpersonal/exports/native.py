"""Our own file, which A1111, ComfyUI and kohya's scripts read as it is."""

from __future__ import annotations

from ..concept import Concept
from .export import Export, file_of, words


def write(concept: Concept) -> Export:
    """One file, `<owner>-<name>.safetensors`, with everything the concept has."""
    slug = concept.token.slug
    name = f"{slug}.safetensors"
    return Export(
        program="sdpersonal",
        files={name: file_of(concept)},
        places={name: "any folder"},
        word=str(concept.token.unversioned()),
        install=(f"sdpersonal concepts import {name}",),
        notes=(_elsewhere(concept, slug), "Keep the file's name: other programs call the concept by it."),
    )


def _elsewhere(concept: Concept, slug: str) -> str:
    lora = f"<lora:{slug}:1>"
    if concept.lora is None:
        return (
            f"The same file is an embedding for A1111 (embeddings/, type {slug}) and for ComfyUI "
            f"(models/embeddings/, type embedding:{slug}), and for gen_img.py of kohya's scripts."
        )
    if not concept.vectors:
        typed = f"{words(concept, slug)} {lora}".strip()
        return (
            f"The same file is a LoRA for A1111 (models/Lora/, type {typed}), for ComfyUI (models/loras/) and for "
            "kohya's scripts (--network_weights)."
        )
    return (
        f"The same file is a LoRA with its word for A1111 1.7 and later (models/Lora/, type {slug} {lora}), and for "
        f"ComfyUI if it lies in models/loras/ and in models/embeddings/ (type embedding:{slug}). "
        "kohya's scripts and InvokeAI read the LoRA and pass over the word."
    )
