"""Read the form of the Generate tab: a request's fields, the init image and the inpainting mask."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....config import GenerateRequest
from ....config.generation import DEFAULT_STEPS
from ....errors import FieldError, UserError
from ....models.model_info import ModelInfo
from .gallery import Gallery
from .init_images import InitImages

FRESH_SEEDS = 2**32  # larger seeds start from the same noise as one of these
_MAY_STAY_EMPTY = ("fast", "scheduler", "steps", "guidance", "rescale")  # None in a request, "" or null in the form
_PATHS = ("init_image", "mask")  # fields of a request that no page may give
_ASPECTS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))
_MIN_SIDE = 64  # pixels


def form_defaults(base: ModelInfo) -> dict[str, Any]:
    """Return the form's values for a model that was just loaded."""
    return {
        "prompt": "",
        "negative": "",
        "num_images": 4,
        "steps": DEFAULT_STEPS,
        "guidance": base.guidance,
        "rescale": base.rescale,
        "width": base.resolution,
        "height": base.resolution,
        "seed": None,
        "all_combinations": False,
        "hires_scale": 1.0,
        "strength": 0.6,
        "scheduler": "",
        "clip_skip": 1,
        "compose": True,
        "fast": "",
        "init": None,
        "mask": None,
    }


def aspect_presets(resolution: int) -> list[dict[str, Any]]:
    """Return sizes of about a model's area: multiples of 64 pixels, or of 8 for a small one."""
    unit = 64 if resolution >= 512 else 8
    presets = []
    for across, down in _ASPECTS:
        width = resolution * (across / down) ** 0.5
        width, height = (max(_MIN_SIDE, round(side / unit) * unit) for side in (width, resolution**2 / width))
        presets.append({"label": f"{across}:{down}", "width": width, "height": height})
    return presets


def keep_uploads(form: Mapping[str, Any], gallery: Gallery, user: str | None) -> dict[str, Any]:
    """Return a form for the same images at any time: with a seed, and with saved images in the place of uploads, which
    are deleted. Raises UserError."""
    lasting = dict(form)
    if lasting.get("init_image") or isinstance(lasting.get("mask"), str):
        raise UserError("The form names a file.", "Reload the page.")
    seed = read_seed(lasting.get("seed"))
    lasting["seed"] = str(seed) if isinstance(seed, int) else seed
    init, mask = lasting.get("init"), lasting.get("mask")
    if mask and not init:
        raise UserError("The mask has no init image.", "Choose one, or remove the mask.")
    if not init:
        return lasting
    init_images = InitImages(gallery.workspace, user)
    if isinstance(init, Mapping) and "upload" in init:
        lasting["init"] = {"saved": init_images.save_image(str(init["upload"]))}
    if isinstance(mask, Mapping) and "upload" in mask:
        size = init_images.size(_init_path(lasting["init"], gallery, user))
        name = init_images.save_mask(str(mask["upload"]), size)
        lasting["mask"] = {"saved": name} if name is not None else None
    return lasting


def request_fields(form: Mapping[str, Any], gallery: Gallery, user: str | None) -> dict[str, Any]:
    """Return the fields of a `GenerateRequest`. Raises UserError.

    form: its fields, but width and height for the size, a seed as text or None for a new one, and init and mask as
    {"upload": path}, {"image": id} or {"saved": name of an init image}, or None. Uploads are saved and deleted.
    """
    fields = keep_uploads(form, gallery, user)
    init, mask = fields.pop("init", None), fields.pop("mask", None)
    fields.pop("init_image", None)
    width, height = fields.pop("width", None), fields.pop("height", None)
    if width is not None or height is not None:
        fields["size"] = f"{width}x{height}"
    fields |= {name: None for name in (*_MAY_STAY_EMPTY, "size") if name in fields and fields[name] in ("", None)}
    fields["seed"] = read_seed(fields.get("seed"))
    init_fields = _init_fields(init, mask, gallery, user)
    if init_fields:  # the init image has its own size
        fields |= {"size": None, "hires_scale": 1.0}
    return fields | init_fields


def read_seed(seed: object) -> object:
    """Return a seed's number; a random one for None. Invalid text is returned as it is, for validation to refuse."""
    if seed is None:
        return random.randrange(FRESH_SEEDS)
    if isinstance(seed, str):
        text = seed.strip()
        if not text:
            raise FieldError("seed", "seed is empty.")
        return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else text
    return seed


def form_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's fields as the form shows them; fields that are absent stay as they are."""
    values = {name: value for name, value in fields.items() if name in GenerateRequest.model_fields}
    values = {name: value for name, value in values.items() if name not in _PATHS}
    for name in ("fast", "scheduler"):
        if name in values:
            values[name] = values[name] or ""
    if "seed" in values:  # as text: JavaScript's numbers lose digits of seeds above 2**53
        values["seed"] = str(values["seed"])
    if match := re.fullmatch(r"(\d+)x(\d+)", str(values.pop("size", ""))):
        values |= {"width": int(match[1]), "height": int(match[2])}
    return {name: value for name, value in values.items() if value is not None or name == "variation_strength"}


def save_init_image(source: object, gallery: Gallery, user: str | None) -> dict[str, Any]:
    """Return an init image that outlives its upload, as the form has it, with its size and address."""
    init_images = InitImages(gallery.workspace, user)
    if not isinstance(source, Mapping) or "upload" not in source:
        path = _init_path(source, gallery, user)
        value = dict(source) if isinstance(source, Mapping) else {}
        url = f"/app/images/{value['image']}.png" if "image" in value else f"/app/init-images/{value['saved']}.png"
    else:
        name = init_images.save_image(str(source["upload"]))
        path, value, url = init_images.path(name), {"saved": name}, f"/app/init-images/{name}.png"
    width, height = init_images.size(path)
    return {"init": value, "url": url, "width": width, "height": height}


def _init_fields(init: object, mask: object, gallery: Gallery, user: str | None) -> dict[str, Path]:
    if not init:
        return {}
    fields = {"init_image": _init_path(init, gallery, user)}
    if mask:
        fields["mask"] = _saved_path(mask, InitImages(gallery.workspace, user))
    return fields


def _init_path(init: object, gallery: Gallery, user: str | None) -> Path:
    init_images = InitImages(gallery.workspace, user)
    if isinstance(init, Mapping) and "image" in init:
        return gallery.find(user, init["image"]).path
    return _saved_path(init, init_images)


def _saved_path(value: object, init_images: InitImages) -> Path:
    if not isinstance(value, Mapping) or "saved" not in value:
        raise UserError("That is not an init image.", "Choose it again.")
    return init_images.path(value["saved"])
