"""Read diffusers' textual inversions: `learned_embeds.safetensors` or older `.bin`, one tensor under the token's name.

Those for SDXL are two files, `learned_embeds.safetensors` (CLIP-L) and `learned_embeds_2.safetensors` (CLIP-G).
Sources: diffusers `examples/textual_inversion/textual_inversion.py` and `textual_inversion_sdxl.py` (`save_progress`),
`loaders/textual_inversion.py`.
"""

from __future__ import annotations

from ...errors import UserError
from ...prompts import Token, printable
from ..concept import EMBEDDING_WIDTHS, Concept
from .contents import FileContents
from .to_concept import base_from_widths, make_concept

EMBEDDINGS = {"clip_l": "learned_embeds.safetensors", "clip_g": "learned_embeds_2.safetensors"}
LORA = "pytorch_lora_weights.safetensors"
FILES = {*EMBEDDINGS.values(), LORA}  # the default names that diffusers looks for


def fits(content: FileContents) -> bool:
    [key] = content.shapes if len(content.shapes) == 1 else [""]
    return content.flat and key != "" and not key.isdigit()


def read(content: FileContents, token: Token | None = None) -> Concept:
    """Convert either kind of file to a concept: vectors (dim,) or (n, dim) under one name. Raises UserError."""
    [word] = content.shapes
    vectors = content.embeddings(word)
    if content.fact("modelspec.architecture").startswith("stable-diffusion-xl"):
        raise UserError(
            f"{printable(content.name)} is one of the two files of an SDXL embedding, for one text encoder.",
            "Give both at once, or their folder.",
        )
    base = base_from_widths({"clip_l": vectors.shape[1]}, content.name)
    return make_concept(content, base, {"clip_l": vectors}, None, token, word)


def is_pair(contents: FileContents, two: FileContents) -> bool:
    """Return whether these are SDXL's two files, in either order."""
    if not (fits(contents) and fits(two)):
        return False
    widths = {shape[-1] for content in (contents, two) for shape in content.shapes.values()}
    return widths == set(EMBEDDING_WIDTHS["sdxl"].values())


def read_pair(contents: FileContents, two: FileContents, token: Token | None = None) -> Concept:
    """Convert SDXL's two files to a concept. Raises UserError."""
    vectors = {}
    for content in (contents, two):
        [key] = content.shapes
        embeddings = content.embeddings(key)
        vectors["clip_l" if embeddings.shape[1] == EMBEDDING_WIDTHS["sdxl"]["clip_l"] else "clip_g"] = embeddings
    words = {*contents.shapes, *two.shapes}
    if len(words) > 1:
        tokens = " and ".join(map(printable, sorted(words)))
        raise UserError(
            f"{printable(contents.name)} and {printable(two.name)} are for different tokens: {tokens}.",
            "Put each with the other file of its own concept in a folder.",
        )
    return make_concept(contents, "sdxl", vectors, None, token, words.pop())
