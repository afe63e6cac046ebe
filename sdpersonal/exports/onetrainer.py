"""OneTrainer, which goes on training from these files. Sources: its `modelSetup/BaseStableDiffusionSetup.py` and
`BaseStableDiffusionXLSetup.py` (the names of an embedding's tensors), `util/load_lora_util.py`."""

from __future__ import annotations

from ..concept import Concept
from ..tensorfile import pack
from .export import Export, embedding, lora, words
from .header import facts


def write(concept: Concept) -> Export:
    """`embedding/<owner>-<name>.safetensors`, `lora/<owner>-<name>.safetensors`, or both."""
    slug, word = concept.token.slug, str(concept.token.unversioned())
    files, install = {}, []
    if concept.vectors:
        files[f"embedding/{slug}.safetensors"] = _embedding(concept, word)
        install.append(
            f"Embedding: choose the file as base embedding or under additional embeddings, with placeholder {word}."
        )
    if concept.lora:
        files[f"lora/{slug}.safetensors"] = lora(concept)
        install.append("LoRA: choose the file as the LoRA base model.")
    notes = ["OneTrainer trains; it draws only samples."]
    if concept.vectors and concept.card.base != "sdxl":
        notes.append("Only OneTrainer and this program read embedding/: its tensor is called emp_params there.")
    return Export(
        program="OneTrainer",
        files=files,
        places={path: "any folder" for path in files},
        word=words(concept, word),
        install=tuple(install),
        notes=tuple(notes),
    )


def _embedding(concept: Concept, word: str) -> bytes:
    if concept.card.base == "sdxl":
        return embedding(concept)
    tensors = {"emp_params": concept.vectors["clip_l"]}  # so it is spelled there
    return b"".join(pack(tensors, facts(concept, tensors, word)))
