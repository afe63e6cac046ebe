"""Export files in our own layout, whole or split into embedding and LoRA, for programs that read them.

Sources, by program:
AUTOMATIC1111's web UI and its relatives (Forge, SD.Next): `modules/textual_inversion/textual_inversion.py` (a file's
name is its embedding's), `extensions-builtin/Lora/networks.py`. One file with both works from version 1.7 on; two work
everywhere.
ComfyUI: `comfy/sd1_clip.py` (`load_embed`), `comfy/lora.py`.
InvokeAI: `backend/model_manager/configs` (how it recognises a file), `app/util/ti_utils.py` (how a prompt names it),
`backend/model_manager/load/model_loaders/lora.py`, which drops embeddings inside a LoRA's file.
kohya's sd-scripts: `networks/lora.py`, `gen_img.py`, `train_textual_inversion.py`. The LoRA's file holds the embedding
too (`bundle_emb`), for programs that look there; these scripts read embeddings from files of their own.
"""

from __future__ import annotations

from ..concept import Concept
from .export import Export, embedding_file, lora_file, native_file, reads, refuse_unread, trigger_words

# Forms of `layer_changes` that a program does not read.
_UNREAD_BY_A1111 = {"set", "OFT of inputs"}
_UNREAD_BY_COMFYUI = {"IA3", "OFT of inputs"}
_UNREAD_BY_INVOKEAI = {"set", "GLoRA", "OFT", "OFT of inputs"}
_UNREAD_BY_KOHYA = {"set", "OFT of inputs"}
_READERS = {  # program, and how to use our own file there -> forms that it does not read
    "A1111 (models/Lora/, type {typed})": _UNREAD_BY_A1111,
    "ComfyUI (models/loras/)": _UNREAD_BY_COMFYUI,
    "kohya's scripts with LyCORIS beside them (--network_module lycoris.kohya)": _UNREAD_BY_KOHYA,
}
_MAX_TOKENS = 75  # tokens of a prompt in InvokeAI


def native(concept: Concept) -> Export:
    """Build our own file, `<owner>-<name>.safetensors`, with everything the concept has."""
    slug = concept.token.slug
    name = f"{slug}.safetensors"
    return Export(
        program="sdpersonal",
        files={name: native_file(concept)},
        destinations={name: "any folder"},
        trigger_word=str(concept.token.unversioned()),
        install=(f"sdpersonal concepts import {name}",),
        notes=(_other_programs(concept, slug), "Keep the file's name: other programs call the concept by it."),
    )


def a1111(concept: Concept) -> Export:
    """Build `embeddings/<owner>-<name>.safetensors`, `models/Lora/<owner>-<name>.safetensors`, or both."""
    refuse_unread(concept, "AUTOMATIC1111 web UI", _UNREAD_BY_A1111)
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
        destinations={path: path.rpartition("/")[0] + "/" for path in files},
        trigger_word=trigger_words(concept, slug),
        lora_tag=f"<lora:{slug}:1>" if concept.lora else "",
        install=tuple(install),
        notes=("Keep the files' names: they are the words to type.",),
    )


def comfyui(concept: Concept) -> Export:
    """Build `models/embeddings/<owner>-<name>.safetensors`, `models/loras/<owner>-<name>.safetensors`, or both."""
    refuse_unread(concept, "ComfyUI", _UNREAD_BY_COMFYUI)
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
        destinations={path: path.rpartition("/")[0] + "/" for path in files},
        trigger_word=trigger_words(concept, f"embedding:{slug}"),
        install=tuple(install),
        notes=("A word in a prompt loads no LoRA here: the node does.",) if concept.lora else (),
    )


def invokeai(concept: Concept) -> Export:
    """Build `embedding/<owner>-<name>.safetensors`, `lora/<owner>-<name>.safetensors`, or both."""
    refuse_unread(concept, "InvokeAI", _UNREAD_BY_INVOKEAI)
    slug = concept.token.slug
    files: dict[str, bytes] = {}
    places: dict[str, str] = {}
    install, notes = [], []
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
        destinations=places,
        trigger_word=trigger_words(concept, f"<{slug}>"),
        install=tuple(install),
        notes=tuple(notes),
    )


def kohya(concept: Concept) -> Export:
    """Build `lora/<owner>-<name>.safetensors`, `embeddings/<owner>-<name>.safetensors`, or both."""
    refuse_unread(concept, "kohya's sd-scripts", _UNREAD_BY_KOHYA)
    slug = concept.token.slug
    files: dict[str, bytes] = {}
    options, notes = [], []
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
        destinations={path: "any folder" for path in files},
        trigger_word=trigger_words(concept, slug),
        install=("Give the files to gen_img.py, or go on training from them with --network_weights or --weights.",),
        notes=tuple(notes),
        terminal=" \\\n  ".join([f"python gen_img.py{sdxl} --ckpt MODEL", *options, "--prompt {prompt}"]),
    )


def _other_programs(concept: Concept, slug: str) -> str:
    """Return a sentence about the programs that read our own file as it is."""
    lora = f"<lora:{slug}:1>"
    if concept.lora is None:
        return (
            f"The same file is an embedding for A1111 (embeddings/, type {slug}) and for ComfyUI "
            f"(models/embeddings/, type embedding:{slug}), and for gen_img.py of kohya's scripts."
        )
    typed = f"{trigger_words(concept, slug)} {lora}".strip()
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
