"""A picture to begin from, and the part of it that was painted over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .... import storage
from ....errors import UserError
from ....image_grid import encode_png
from ..workspace import Workspace

_MAX_SIDE = 4096  # pixels of a side
_MIN_PAINT = 16  # of 255: paint that is thinner is a slip of the brush's soft edge


def save_init_image(house: Workspace, page: str, editor: Any) -> dict[str, Path]:
    """{"start": file, "mask": file}: what an image editor holds, as a request wants it; {} where it is empty.

    editor: {"background": PIL image or None, "layers": PIL images}. The mask is white where anything was painted.
    Raises UserError for what is too large.
    """
    picture = editor.get("background") if isinstance(editor, dict) else None
    if not isinstance(picture, Image.Image):
        return {}
    if max(picture.size) > _MAX_SIDE:
        raise UserError(f"The start picture is {picture.width}x{picture.height}.", f"I take up to {_MAX_SIDE} pixels.")
    layers = [
        each for each in editor.get("layers") or () if isinstance(each, Image.Image) and each.size == picture.size
    ]
    painted = [np.asarray(each.convert("RGBA"))[..., 3] > _MIN_PAINT for each in layers]
    found = {"start": _save(house, page, "start", _flatten(picture))}
    if any(mask.any() for mask in painted):
        found["mask"] = _save(house, page, "mask", Image.fromarray(np.any(painted, axis=0)).convert("RGB"))
    return found


def _flatten(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    whole = picture.convert("RGBA")
    paper = Image.new("RGBA", whole.size, "white")
    return Image.alpha_composite(paper, whole).convert("RGB")


def _save(house: Workspace, page: str, name: str, picture: Image.Image) -> Path:
    data = encode_png(picture)
    place = house.room(page) / f"{name}-{storage.sha256(data)[:16]}.png"
    storage.write_bytes(place, data)
    return place
