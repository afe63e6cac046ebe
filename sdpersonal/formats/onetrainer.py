"""OneTrainer's embeddings for SD 1.x and 2.x: `emp_params` (as they spell it). For SDXL it writes `clip_l`, `clip_g`.

Source: OneTrainer `modules/modelSaver/stableDiffusion/StableDiffusionEmbeddingSaver.py`.
"""

from __future__ import annotations

from ..concept import Concept
from ..prompts import Token
from .content import Content
from .making import base_of, made

_KEY = "emp_params"


def fits(content: Content) -> bool:
    return content.shapes.keys() == {_KEY}


def read(content: Content, token: Token | None = None) -> Concept:
    """The concept. Raises PersonalError."""
    rows = content.rows(_KEY)
    return made(content, base_of({"clip_l": rows.shape[1]}, content.name), {"clip_l": rows}, None, token)
