"""Export for ComfyUI. Sources: its `comfy/sd1_clip.py` (`load_embed`) and `comfy/lora.py`."""

from __future__ import annotations

from ..concept import Concept
from .export import Export, embedding_file, lora_file, prompt_words, refuse_unread

UNREAD = {"IA3", "OFT of inputs"}  # forms of `changes`


def write(concept: Concept) -> Export:
    """Build `models/embeddings/<owner>-<name>.safetensors`, `models/loras/<owner>-<name>.safetensors`, or both."""
    refuse_unread(concept, "ComfyUI", UNREAD)
    slug = concept.token.slug
    files, install = {}, ["Copy the folder models into ComfyUI's own folder, and press R."]
    if concept.vectors:
        files[f"models/embeddings/{slug}.safetensors"] = embedding_file(concept)
    if concept.lora:
        files[f"models/loras/{slug}.safetensors"] = lora_file(concept)
        install.append(
            f"Put a Load LoRA node with {slug}.safetensors between the checkpoint and both the sampler and the prompts."
        )
    return Export(
        program="ComfyUI",
        files=files,
        places={path: path.rpartition("/")[0] + "/" for path in files},
        word=prompt_words(concept, f"embedding:{slug}"),
        install=tuple(install),
        notes=("A word in a prompt loads no LoRA here: the node does.",) if concept.lora else (),
    )
