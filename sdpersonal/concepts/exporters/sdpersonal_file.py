"""Export our own file, which A1111, ComfyUI and kohya's scripts read as it is."""

from __future__ import annotations

from ..concept import Concept
from . import a1111, comfyui, kohya
from .export import Export, native_file, prompt_words, reads

_READERS = {  # program, and how to use the file there -> forms of `changes` that it does not read
    "A1111 (models/Lora/, type {typed})": a1111.UNREAD,
    "ComfyUI (models/loras/)": comfyui.UNREAD,
    "kohya's scripts with LyCORIS beside them (--network_module lycoris.kohya)": kohya.UNREAD,
}


def write(concept: Concept) -> Export:
    """Build one file, `<owner>-<name>.safetensors`, with everything the concept has."""
    slug = concept.token.slug
    name = f"{slug}.safetensors"
    return Export(
        program="sdpersonal",
        files={name: native_file(concept)},
        places={name: "any folder"},
        word=str(concept.token.unversioned()),
        install=(f"sdpersonal concepts import {name}",),
        notes=(_other_programs(concept, slug), "Keep the file's name: other programs call the concept by it."),
    )


def _other_programs(concept: Concept, slug: str) -> str:
    lora = f"<lora:{slug}:1>"
    if concept.lora is None:
        return (
            f"The same file is an embedding for A1111 (embeddings/, type {slug}) and for ComfyUI "
            f"(models/embeddings/, type embedding:{slug}), and for gen_img.py of kohya's scripts."
        )
    typed = f"{prompt_words(concept, slug)} {lora}".strip()
    if concept.lora.changes:
        readers = [program.format(typed=typed) for program, unread in _READERS.items() if reads(concept, unread)]
        known = f"The same file works in {' and in '.join(readers)}." if readers else "No other program reads it."
        return f"It holds {concept.lora.kinds}, which is no plain LoRA. {known}"
    if not concept.vectors:
        return (
            f"The same file is a LoRA for A1111 (models/Lora/, type {typed}), for ComfyUI (models/loras/) and for "
            "kohya's scripts (--network_weights)."
        )
    return (
        f"The same file is a LoRA with its word for A1111 1.7 and later (models/Lora/, type {slug} {lora}), and for "
        f"ComfyUI if it lies in models/loras/ and in models/embeddings/ (type embedding:{slug}). "
        "kohya's scripts and InvokeAI read the LoRA and pass over the word."
    )
