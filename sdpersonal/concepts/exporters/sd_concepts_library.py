"""Export a folder for the sd-concepts-library on the Hub: one word, no LoRA, Stable Diffusion 1.x or 2.x.

Sources: the notebooks sd_textual_inversion_training (what is written) and stable_conceptualizer_inference (what is
read): `torch.load`, the only key is the word, its value goes into one row of the embedding table.
"""

from __future__ import annotations

from ..concept import Concept
from ..licences import hub_licence
from ..thumbnail import reencode_thumbnail
from .export import HUB_MODELS, Export, not_exportable_error
from .torch_save import torch_save_bytes

_PROGRAM = "the sd-concepts-library"


def write(concept: Concept) -> Export:
    """Build `learned_embeds.bin`, `token_identifier.txt`, `type_of_concept.txt`, `concept_images/` with the thumbnail.

    Raises UserError where it has no vectors, or is for SDXL.
    """
    if not concept.vectors:
        raise not_exportable_error(
            concept, _PROGRAM, "it has no vectors, and that library has no LoRAs", "Choose --format kohya."
        )
    if concept.card.base == "sdxl":
        raise not_exportable_error(
            concept, _PROGRAM, "that library does not support SDXL", "Choose --format diffusers."
        )
    word, embeddings = str(concept.token.unversioned()), concept.vectors["clip_l"]
    files = {
        "learned_embeds.bin": torch_save_bytes(word, embeddings[0] if len(embeddings) == 1 else embeddings),
        "token_identifier.txt": word.encode(),
        "type_of_concept.txt": b"style" if concept.card.kind == "style" else b"object",
    }
    if concept.thumbnail:
        image = reencode_thumbnail(concept.thumbnail)
        files["concept_images/0.webp"] = image
    return Export(
        program=_PROGRAM,
        files=files,
        destinations={name: "the repository" for name in files},
        trigger_word=word,
        install=("Upload the folder as a repository of its own.", "diffusers reads it there, and here:"),
        notes=tuple(_notes(concept, len(embeddings))),
        python='pipe.load_textual_inversion("FOLDER OR REPOSITORY")\npipe({prompt})',
    )


def hub_facts(concept: Concept) -> dict[str, object]:
    """Return what the Hub reads at the top of the README."""
    model = HUB_MODELS.get(concept.card.base)
    return {
        **hub_licence(concept.card.license),
        **({"base_model": model} if model else {}),
        "tags": ["stable-diffusion", "textual-inversion"],
    }


def _notes(concept: Concept, count: int) -> list[str]:
    notes = ["learned_embeds.bin is a pickle, as that library has them; it holds one tensor and runs nothing."]
    if count > 1:
        notes.append(f"It has {count} vectors: diffusers and A1111 read them all, that library's notebook only one.")
    if concept.lora:
        notes.append("Its LoRA is left out, since that library has none. Alone, the word shows less of the concept.")
    if concept.thumbnail:
        notes.append("concept_images/ holds a generated image; the photos it was trained on are not included.")
    return notes
