"""Read the form of the Generate tab: a request's fields, the init image and the inpainting mask."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .... import storage
from ....display.image_grid import encode_png
from ....errors import UserError
from ..train.train_form import typed_number
from ..workspace import Workspace

MAY_STAY_EMPTY = ("fast", "scheduler")  # None in a request, an empty text in the form
FRESH_SEEDS = 2**32  # larger seeds start from the same noise as one of these
_MAX_SIDE = 4096  # pixels of a side
_MIN_PAINT = 16  # of 255: fainter paint is only the brush's soft edge


def request_fields(form: Mapping[str, Any], editor: Any, workspace: Workspace, page: str) -> dict[str, Any]:
    """Return the fields of a `GenerateRequest`. editor: as for `save_init_image`. Raises UserError."""
    number = typed_number(form["seed"])
    fields = {**form, **{name: form[name] or None for name in MAY_STAY_EMPTY}}
    fields["seed"] = "" if number is None else number  # "" is refused by validation
    init_fields = save_init_image(workspace, page, editor)
    if init_fields:  # the init image keeps its own size
        fields |= {"size": None, "hires_scale": 1.0}
    return fields | init_fields


def form_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's fields as the form shows them; None means that a field of the form stays as it is."""
    values = {**fields, **{name: fields[name] or "" for name in MAY_STAY_EMPTY if name in fields}}
    return values | {"seed": str(values["seed"])} if "seed" in values else values


def random_seed() -> str:
    """Return a new random seed as text for the form."""
    return str(random.randrange(FRESH_SEEDS))


def save_init_image(workspace: Workspace, page: str, editor: Any) -> dict[str, Path]:
    """Save the editor's image and mask; return the request's fields {"init_image": file, "mask": file}, or {} if empty.

    editor: {"background": PIL image or None, "layers": PIL images}. The mask is white where anything was painted.
    Raises UserError if the image is too large.
    """
    image = editor.get("background") if isinstance(editor, dict) else None
    if not isinstance(image, Image.Image):
        return {}
    if max(image.size) > _MAX_SIDE:
        raise UserError(
            f"The init image is {image.width}x{image.height}.", f"Use one of at most {_MAX_SIDE} pixels a side."
        )
    layers = [
        layer for layer in editor.get("layers") or () if isinstance(layer, Image.Image) and layer.size == image.size
    ]
    painted_masks = [np.asarray(layer.convert("RGBA"))[..., 3] > _MIN_PAINT for layer in layers]
    fields = {"init_image": _save(workspace, page, "start", _flatten(image))}
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
