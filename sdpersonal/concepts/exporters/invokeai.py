"""Export for InvokeAI.

Sources: its `backend/model_manager/configs` (what a file is taken for), `app/util/ti_utils.py` (how a prompt names it),
`backend/model_manager/load/model_loaders/lora.py`, which drops embeddings that lie in a LoRA's file.
"""

from __future__ import annotations

from ..concept import Concept
from .export import Export, embedding_file, lora_file, prompt_words, refuse_unread

_MAX_TOKENS = 75  # tokens of a prompt

_UNREAD = {"set", "GLoRA", "OFT", "OFT of inputs"}  # forms of `changes`


def write(concept: Concept) -> Export:
    """Build `embedding/<owner>-<name>.safetensors`, `lora/<owner>-<name>.safetensors`, or both."""
    refuse_unread(concept, "InvokeAI", _UNREAD)
    slug = concept.token.slug
    files, places, install, notes = {}, {}, [], []
    if concept.vectors:
        path = f"embedding/{slug}.safetensors"
        files[path], places[path] = embedding_file(concept), "Model Manager, as a Textual Inversion"
        install.append(f"In the Model Manager, add {path}; leave its name {slug}.")
        vectors = len(next(iter(concept.vectors.values())))
        if vectors > 1:
            notes.append(
                f"The word takes {vectors} of {_MAX_TOKENS} places; InvokeAI cuts a longer prompt without saying so."
            )
    if concept.lora:
        path = f"lora/{slug}.safetensors"
        files[path], places[path] = lora_file(concept), "Model Manager, as a LoRA"
        install.append(f"In the Model Manager, add {path}. In the Generation panel, choose it under Concepts.")
        notes.append("A word in a prompt loads no LoRA here: it is chosen in the panel.")
    return Export(
        program="InvokeAI",
        files=files,
        places=places,
        word=prompt_words(concept, f"<{slug}>"),
        install=tuple(install),
        notes=tuple(notes),
    )
