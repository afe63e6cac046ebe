"""Export for kohya's sd-scripts. Sources: its `networks/lora.py`, `gen_img.py`, `train_textual_inversion.py`.

The LoRA's file holds the word too (`bundle_emb`), for the programs that look there; these scripts read words from
files of their own.
"""

from __future__ import annotations

from ..concept import Concept
from .export import Export, embedding_file, native_file, prompt_words, refuse_unread

UNREAD = {"set", "OFT of inputs"}  # forms of `changes`


def write(concept: Concept) -> Export:
    """Build `lora/<owner>-<name>.safetensors`, `embeddings/<owner>-<name>.safetensors`, or both."""
    refuse_unread(concept, "kohya's sd-scripts", UNREAD)
    slug = concept.token.slug
    files, options, notes = {}, [], []
    if concept.lora:
        files[f"lora/{slug}.safetensors"] = native_file(concept)
        module = "lycoris.kohya" if concept.lora.changes else "networks.lora"
        options += [f"--network_module {module}", f"--network_weights lora/{slug}.safetensors", "--network_mul 1"]
    if concept.vectors:
        files[f"embeddings/{slug}.safetensors"] = embedding_file(concept)
        options.append(f"--textual_inversion_embeddings embeddings/{slug}.safetensors")
        notes.append("The scripts call the word by its file's name: keep it.")
    if concept.lora and concept.vectors:
        notes.append(
            "lora/ also holds the word, for A1111 and ComfyUI; kohya's scripts pass over it there and read embeddings/."
        )
    if concept.lora and concept.lora.changes:
        notes.append("Its layers are LyCORIS': install that beside the scripts (pip install lycoris-lora).")
    sdxl = " --sdxl" if concept.card.base == "sdxl" else " --v2" if concept.card.base == "sd2" else ""
    return Export(
        program="kohya's sd-scripts",
        files=files,
        places={path: "any folder" for path in files},
        word=prompt_words(concept, slug),
        install=("Give the files to gen_img.py, or go on training from them with --network_weights or --weights.",),
        notes=tuple(notes),
        terminal=" \\\n  ".join([f"python gen_img.py{sdxl} --ckpt MODEL", *options, "--prompt {prompt}"]),
    )
