"""Read the form of the Generate tab: a request's fields, the init image and the inpainting mask."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .... import storage
from ....display.image_grid import encode_png
from ....errors import UserError
from ....photos.decode import UnusablePhoto, open_unread
from ..train.train_form import typed_number
from ..workspace import Workspace

MAY_STAY_EMPTY = ("fast", "scheduler")  # None in a request, an empty text in the form
FRESH_SEEDS = 2**32  # larger seeds start from the same noise as one of these
_MAX_SIDE = 4096  # pixels of a side
_MAX_LAYERS = 2  # painted layers that are read
_MAX_BYTES = 100_000_000  # of a file
_FORMATS = ("PNG", "JPEG", "WebP")
_STRIP = 256  # rows
_MAX_SAVED = 4  # init images of a page, and masks
_MIN_PAINT = 16  # of 255: fainter paint is only the brush's soft edge
_decoding = threading.Lock()  # one image at a time: any number of pages may ask at once


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

    editor: {"background": an image or None, "layers": images, "composite": ...}, each as `_open_unread` takes it. The
    mask is white where anything was painted. Uploads are deleted. Raises UserError if an image cannot be used.
    """
    if not isinstance(editor, dict):
        return {}
    background, layers = editor.get("background"), list(editor.get("layers") or ())
    try:
        with _decoding:
            return _save_images(workspace, page, background, layers[:_MAX_LAYERS])
    finally:
        for file in (background, *layers, editor.get("composite")):
            if isinstance(file, Path):
                workspace.discard_upload(file)


def _save_images(workspace: Workspace, page: str, background: object, layers: Sequence[object]) -> dict[str, Path]:
    image = _open_unread(background)
    if image is None:
        return {}
    if max(image.size) > _MAX_SIDE:
        raise UserError(
            f"The init image is {image.width}x{image.height}.", f"Use one of at most {_MAX_SIDE} pixels a side."
        )
    fields, size = {"init_image": _save(workspace, page, "start", _flatten(image))}, image.size
    del image
    painted = np.zeros(size[::-1], bool)
    for source in layers:
        layer = _open_unread(source)
        if layer is not None and layer.size == size:
            painted |= _painted(layer)
    if painted.any():
        fields["mask"] = _save(workspace, page, "mask", Image.fromarray(painted).convert("RGB"))
    return fields


def _open_unread(source: object) -> Image.Image | None:
    """Open an image without decoding its pixels; None if it is none. source: its file, or an image."""
    if isinstance(source, Image.Image):
        return source
    try:
        return open_unread(storage.read_bytes(source, _MAX_BYTES), _FORMATS) if isinstance(source, Path) else None
    except UnusablePhoto as reason:
        raise UserError(f"The init image {reason}.", f"Use one of {', '.join(_FORMATS)}.") from None


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield (top, strip of the image as RGBA), so that a large image is never in memory twice."""
    try:
        image.load()
    except Exception:  # decoders of untrusted bytes raise anything
        raise UserError("The init image is damaged and cannot be decoded.", "Use another.") from None
    for top in range(0, image.height, _STRIP):
        yield top, image.crop((0, top, image.width, min(top + _STRIP, image.height))).convert("RGBA")


def _flatten(image: Image.Image) -> Image.Image:
    """Convert to RGB with transparent parts white."""
    flat = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        white = Image.new("RGBA", strip.size, "white")
        flat.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return flat


def _painted(layer: Image.Image) -> np.ndarray:
    """Return where a layer is painted, bool (H, W)."""
    return np.concatenate([np.asarray(strip)[..., 3] > _MIN_PAINT for _, strip in _strips(layer)])


def _save(workspace: Workspace, page: str, name: str, image: Image.Image) -> Path:
    """Save the image for the page's next job; of earlier ones only the newest few stay, for jobs that still wait."""
    data, folder = encode_png(image), workspace.session_dir(page)
    target = folder / f"{name}-{storage.sha256(data)[:16]}.png"
    storage.write_bytes(target, data)
    for path in sorted(folder.glob(f"{name}-*.png"), key=_modified)[:-_MAX_SAVED]:
        with suppress(UserError):  # removed just now by another event
            storage.remove(path)
    return target


def _modified(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
