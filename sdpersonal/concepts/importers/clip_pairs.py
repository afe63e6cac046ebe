"""Read embeddings for each text encoder in one file, by the encoders' names.

    clip_l, clip_g                      kohya's SDXL trainer, advanced DreamBooth's `_emb`, OneTrainer, A1111, ComfyUI
    text_encoders_0, text_encoders_1    replicate's `embeddings.pti`, a safetensors file whatever it is called

`clip_l` alone is an embedding for SD 1.x, as advanced DreamBooth for SD 1.5 writes it. Sources: kohya-ss sd-scripts
`sdxl_train_textual_inversion.py`; diffusers `examples/advanced_diffusion_training`; replicate cog-sdxl
`dataset_and_utils.py`.
"""

from __future__ import annotations

from ...errors import UserError
from ...prompts import Token, printable
from ..concept import Concept
from .contents import FileContents
from .to_concept import base_from_widths, make_concept

_ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}


def fits(content: FileContents) -> bool:
    return bool(content.shapes) and content.shapes.keys() <= _ENCODERS.keys()


def read(content: FileContents, token: Token | None = None) -> Concept:
    """Convert the contents to a concept. Raises UserError."""
    vectors = {_ENCODERS[key]: content.embeddings(key) for key in content.shapes}
    for_xl = content.fact("modelspec.architecture").startswith("stable-diffusion-xl")
    for missing in {"clip_l", "clip_g"} - vectors.keys():
        if missing == "clip_l" or for_xl:
            raise UserError(
                f"{printable(content.name)} is an SDXL embedding without its {missing}.", "Ask for all of it."
            )
    base = base_from_widths({key: embeddings.shape[1] for key, embeddings in vectors.items()}, content.name)
    return make_concept(content, base, vectors, None, token)
