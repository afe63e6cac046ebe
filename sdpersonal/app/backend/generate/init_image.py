"""Read the init image and the inpainting mask from the page's image editor."""

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
_MIN_PAINT = 16  # of 255: fainter paint is only the brush's soft edge


def save_init_image(workspace: Workspace, page: str, editor: Any) -> dict[str, Path]:
    """Save the editor's image and mask; return the request's fields {"start": file, "mask": file}, {} if it is empty.

    editor: {"background": PIL image or None, "layers": PIL images}. The mask is white where anything was painted.
    Raises UserError if the image is too large.
    """
    image = editor.get("background") if isinstance(editor, dict) else None
    if not isinstance(image, Image.Image):
        return {}
    if max(image.size) > _MAX_SIDE:
        raise UserError(f"The start picture is {image.width}x{image.height}.", f"I take up to {_MAX_SIDE} pixels.")
    layers = [
        layer for layer in editor.get("layers") or () if isinstance(layer, Image.Image) and layer.size == image.size
    ]
    painted_masks = [np.asarray(layer.convert("RGBA"))[..., 3] > _MIN_PAINT for layer in layers]
    fields = {"start": _save(workspace, page, "start", _flatten(image))}
    if any(mask.any() for mask in painted_masks):
        fields["mask"] = _save(workspace, page, "mask", Image.fromarray(np.any(painted_masks, axis=0)).convert("RGB"))
    return fields


def _flatten(image: Image.Image) -> Image.Image:
    """Convert to RGB with transparent parts white."""
    rgba = image.convert("RGBA")
    background = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(background, rgba).convert("RGB")


def _save(workspace: Workspace, page: str, name: str, image: Image.Image) -> Path:
    data = encode_png(image)
    target = workspace.session_dir(page) / f"{name}-{storage.sha256(data)[:16]}.png"
    storage.write_bytes(target, data)
    return target
