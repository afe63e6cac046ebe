"""Read files that hold an embedding alone, in the layouts of the programs that train them.

    {"string_to_param": {"*": (n, dim)}, "name", "step", ...}    A1111 `.pt`; the first textual inversions
    emb_params                          A1111 `.safetensors`; kohya's and invoke-training's writers
    emp_params                          OneTrainer for SD 1.x and 2.x (its spelling)
    clip_l, clip_g                      kohya's SDXL trainer, advanced DreamBooth's `_emb`, OneTrainer, A1111, ComfyUI
    text_encoders_0, text_encoders_1    replicate's `embeddings.pti`, a safetensors file whatever it is called
    <TOKEN>                             diffusers `learned_embeds.safetensors` or older `.bin`: one tensor of any name

In rinongal's files `string_to_param` is an `nn.ParameterDict` with a key for every placeholder. A1111 names an
embedding after its file. `clip_l` alone is an embedding for SD 1.x, as advanced DreamBooth for SD 1.5 writes it.
diffusers' embeddings for SDXL are two files, `learned_embeds` (CLIP-L) and `learned_embeds_2` (CLIP-G).

Sources: A1111 `modules/textual_inversion/textual_inversion.py`; rinongal textual_inversion
`ldm/modules/embedding_manager.py`; kohya-ss sd-scripts `train_textual_inversion.py`, `sdxl_train_textual_inversion.py`;
OneTrainer `modules/modelSaver/stableDiffusion/StableDiffusionEmbeddingSaver.py`; replicate cog-sdxl
`dataset_and_utils.py`; diffusers `examples/advanced_diffusion_training`, `examples/textual_inversion` (`save_progress`)
and `loaders/textual_inversion.py`.
"""

from __future__ import annotations

from ...errors import UserError, printable
from ...prompts import Token
from ..concept import EMBEDDING_WIDTHS, Concept
from .contents import FileContents
from .to_concept import base_from_widths, make_concept

DIFFUSERS_EMBEDDINGS = {"clip_l": "learned_embeds.safetensors", "clip_g": "learned_embeds_2.safetensors"}
DIFFUSERS_LORA = "pytorch_lora_weights.safetensors"
DIFFUSERS_FILES = {*DIFFUSERS_EMBEDDINGS.values(), DIFFUSERS_LORA}  # the default names that diffusers looks for

_A1111_PREFIX, _A1111_KEY = "string_to_param.", "emb_params"
_ONETRAINER_KEY = "emp_params"
_ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}


def fits(content: FileContents) -> bool:
    """Return whether the file is an embedding in one of these layouts."""
    return bool(
        is_a1111(content)
        or content.shapes.keys() == {_ONETRAINER_KEY}
        or _is_by_encoder(content)
        or _is_diffusers(content)
    )


def read(content: FileContents, token: Token | None = None) -> Concept:
    """Convert the contents of a file that `fits` to a concept. Raises UserError."""
    if is_a1111(content):
        return _read_a1111(content, token)
    if content.shapes.keys() == {_ONETRAINER_KEY}:
        return _read_clip_l(content, _ONETRAINER_KEY, token)
    if _is_by_encoder(content):
        return _read_by_encoder(content, token)
    return _read_diffusers(content, token)  # last: it accepts any single name


def is_a1111(content: FileContents) -> bool:
    """Return whether the file is an embedding of A1111, or of the first textual inversions."""
    return _A1111_KEY in content.shapes or any(key.startswith(_A1111_PREFIX) for key in content.shapes)


def _read_a1111(content: FileContents, token: Token | None) -> Concept:
    keys = [key for key in content.shapes if key.startswith(_A1111_PREFIX) or key == _A1111_KEY]
    if len(keys) > 1:
        names = printable(", ".join(key.removeprefix(_A1111_PREFIX) for key in keys))
        raise UserError(
            f"{printable(content.name)} holds several embeddings ({names}).", "Save each in a file of its own."
        )
    placeholder = "" if keys[0] == _A1111_KEY else keys[0].removeprefix(_A1111_PREFIX)
    # The placeholder is a title: its author wrote it in prompts, unless it is A1111's `*`.
    title = "" if placeholder == "*" or content.fact("name") else placeholder[:100]
    return _read_clip_l(content, keys[0], token, title=title)


def _read_clip_l(content: FileContents, key: str, token: Token | None, word: str = "", title: str = "") -> Concept:
    """Convert a file with vectors for one text encoder, under `key`."""
    vectors = content.embeddings(key)
    base = base_from_widths({"clip_l": vectors.shape[1]}, content.name)
    return make_concept(content, base, {"clip_l": vectors}, None, token, word, title)


# --- one file with both encoders of SDXL ------------------------------------------------------------------------------


def _is_by_encoder(content: FileContents) -> bool:
    return bool(content.shapes) and content.shapes.keys() <= _ENCODERS.keys()


def _read_by_encoder(content: FileContents, token: Token | None) -> Concept:
    vectors = {_ENCODERS[key]: content.embeddings(key) for key in content.shapes}
    for missing in {"clip_l", "clip_g"} - vectors.keys():
        if missing == "clip_l" or _is_for_sdxl(content):
            raise UserError(
                f"{printable(content.name)} is an SDXL embedding without its {missing}.", "Ask for all of it."
            )
    base = base_from_widths({key: embeddings.shape[1] for key, embeddings in vectors.items()}, content.name)
    return make_concept(content, base, vectors, None, token)


def _is_for_sdxl(content: FileContents) -> bool:
    return content.fact("modelspec.architecture").startswith("stable-diffusion-xl")


# --- diffusers --------------------------------------------------------------------------------------------------------


def _is_diffusers(content: FileContents) -> bool:
    [key] = content.shapes if len(content.shapes) == 1 else [""]
    return content.is_flat and key != "" and not key.isdigit()


def _read_diffusers(content: FileContents, token: Token | None) -> Concept:
    """Convert vectors (dim,) or (n, dim) under one name."""
    [word] = content.shapes
    if _is_for_sdxl(content):
        raise UserError(
            f"{printable(content.name)} is one of the two files of an SDXL embedding, for one text encoder.",
            "Give both at once, or their folder.",
        )
    return _read_clip_l(content, word, token, word)


def is_diffusers_pair(first: FileContents, second: FileContents) -> bool:
    """Return whether these are diffusers' two files for SDXL, in either order."""
    if not (_is_diffusers(first) and _is_diffusers(second)):
        return False
    widths = {shape[-1] for content in (first, second) for shape in content.shapes.values()}
    return widths == set(EMBEDDING_WIDTHS["sdxl"].values())


def read_diffusers_pair(first: FileContents, second: FileContents, token: Token | None = None) -> Concept:
    """Convert diffusers' two files for SDXL to a concept. Raises UserError."""
    vectors = {}
    for content in (first, second):
        [key] = content.shapes
        embeddings = content.embeddings(key)
        vectors["clip_l" if embeddings.shape[1] == EMBEDDING_WIDTHS["sdxl"]["clip_l"] else "clip_g"] = embeddings
    words = {*first.shapes, *second.shapes}
    if len(words) > 1:
        tokens = " and ".join(map(printable, sorted(words)))
        raise UserError(
            f"{printable(first.name)} and {printable(second.name)} are for different tokens: {tokens}.",
            "Put each with the other file of its own concept in a folder.",
        )
    return make_concept(first, "sdxl", vectors, None, token, words.pop())
