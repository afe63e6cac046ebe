"""Export for AUTOMATIC1111's web UI and its relatives (Forge, SD.Next): folders to be copied over theirs.

Sources: its `modules/textual_inversion/textual_inversion.py` (an embedding is named after its file) and
`extensions-builtin/Lora/networks.py`. One file with both works from version 1.7 on; two work everywhere.
"""

from __future__ import annotations

from ..concept import Concept
from .export import Export, embedding_file, lora_file, prompt_words, refuse_unread

UNREAD = {"set", "OFT of inputs"}  # forms of `changes`


def write(concept: Concept) -> Export:
    """Build `embeddings/<owner>-<name>.safetensors`, `models/Lora/<owner>-<name>.safetensors`, or both."""
    refuse_unread(concept, "AUTOMATIC1111 web UI", UNREAD)
    slug = concept.token.slug
    files = {}
    if concept.vectors:
        files[f"embeddings/{slug}.safetensors"] = embedding_file(concept)
    if concept.lora:
        files[f"models/Lora/{slug}.safetensors"] = lora_file(concept)
    install = ["Copy the folders into the web UI's own folder."]
    install += ["Press the refresh button of the Textual Inversion tab."] if concept.vectors else []
    install += ["Press the refresh button of the Lora tab."] if concept.lora else []
    return Export(
        program="AUTOMATIC1111 web UI",
        files=files,
        places={path: path.rpartition("/")[0] + "/" for path in files},
        word=prompt_words(concept, slug),
        extra_words=f"<lora:{slug}:1>" if concept.lora else "",
        install=tuple(install),
        notes=("Keep the files' names: they are the words to type.",),
    )
