"""Pictures to begin from: image-to-image, and parts to generate anew.

The rule of masks: what is lighter than middle grey is generated anew, all else keeps the start picture's bits. What is
transparent counts as black, whatever colour lies under it, so strokes of white on a transparent layer are a mask, and
strokes of black on one are none. A mask of another size is stretched to the start picture's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter

from .. import storage
from ..config import GenerateRequest
from ..errors import UserError
from ..image_metadata import pixels_sha256
from ..models import StableDiffusion
from ..photos.decode import FORMATS, UnusablePhoto, decode, shorter_side
from ..prompts import printable
from .denoise import InitLatents

_MAX_BYTES = 100 << 20
_MIN_SIDE, _MAX_SIDE = 64, 2048  # pixels of the shorter side
_SAME_SHAPE = 0.02  # of width / height: less is rounding
_FEATHER = 4  # pixels over which a drawn part passes into what was there


@dataclass(frozen=True)
class InitImage:
    """A start picture in its size, and where to draw anew: white in `mask`, in the same size."""

    picture: Image.Image
    mask: Image.Image | None
    image_sha256: str
    mask_sha256: str

    def start(self, base: StableDiffusion) -> InitLatents:
        return InitLatents(encode_image(base, self.picture), self._latent_mask(base))

    def _latent_mask(self, base: StableDiffusion) -> torch.Tensor | None:
        if self.mask is None:
            return None
        # A latent that any drawn pixel touches is drawn; the picture is put together in pixels afterwards.
        white = torch.from_numpy(np.array(self.mask)) >= 128
        return torch.nn.functional.max_pool2d(white[None, None].float(), base.vae_scale_factor).to(base.device)

    def composite(self, drawn: Image.Image) -> Image.Image:
        """Where nothing was to be drawn, the start picture's own pixels."""
        if self.mask is None:
            return drawn
        # Softer towards its edge, and nothing outside: there the start picture stays as it is, to the bit.
        soft = ImageChops.darker(self.mask.filter(ImageFilter.GaussianBlur(_FEATHER)), self.mask)
        return Image.composite(drawn, self.picture, soft)


def load_init_image(request: GenerateRequest, base: StableDiffusion) -> InitImage | None:
    """Raises UserError for what is no picture, or too small."""
    if request.start is None:
        return None
    whole = open_image(request.start)
    size = request.pixels or native_size(whole.size, base)
    mask = open_mask(request.mask) if request.mask else None
    return InitImage(
        center_crop(whole, size),
        _white(center_crop(mask.resize(whole.size, Image.Resampling.LANCZOS), size)) if mask else None,
        pixels_sha256(whole),
        pixels_sha256(mask) if mask else "",
    )


def open_image(path: Path, behind: str = "white") -> Image.Image:
    """RGB, upright, sRGB, as large as it is up to 2,048 pixels. behind: the colour that shows where it is transparent.

    Raises UserError for what is no picture.
    """
    data = storage.read_bytes(path, _MAX_BYTES)
    name = printable(path.name)
    try:
        pixels, _ = decode(data, min(_MAX_SIDE, shorter_side(data)), _MIN_SIDE, behind)
    except UnusablePhoto as error:
        raise UserError(f"{name} {error}.", f"Give a picture: {FORMATS}.") from None
    except Exception:  # the size of a damaged one
        raise UserError(f"{name} is damaged and cannot be decoded.", f"Give a picture: {FORMATS}.") from None
    return Image.fromarray(pixels)


def open_mask(path: Path) -> Image.Image:
    """A mask as `open_picture` reads it, with black where it is transparent. Raises UserError."""
    return open_image(path, behind="black")


def mask_note(request: GenerateRequest) -> str:
    """What a person should know of a request's mask before anything is computed, or "". Raises UserError for a
    start picture or a mask that cannot be read."""
    if request.start is None:
        return ""
    whole = open_image(request.start)
    if request.mask is None:
        return ""
    mask, name = open_mask(request.mask), printable(request.mask.name)
    if not _white(mask).getbbox():
        return f"{name} has nothing white, so nothing of the start picture changes. Paint in white what should change."
    shapes = [picture.width / picture.height for picture in (mask, whole)]
    if abs(shapes[0] / shapes[1] - 1) > _SAME_SHAPE:
        sizes = f"{mask.width}x{mask.height}", f"{whole.width}x{whole.height}"
        return f"{name} is {sizes[0]} and the start picture {sizes[1]}: the mask is stretched to it."
    return ""


def _white(mask: Image.Image) -> Image.Image:
    """255 where the mask is lighter than middle grey, else 0."""
    return mask.convert("L").point(lambda value: 255 * (value >= 128))


def native_size(size: tuple[int, int], base: StableDiffusion) -> tuple[int, int]:
    """The picture's shape in about as many pixels as the base was trained on, in multiples of 8."""
    scale = base.resolution / (size[0] * size[1]) ** 0.5
    return tuple(min(2048, max(64, round(side * scale / 8) * 8)) for side in size)


def center_crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture in another size, RGB."""
    scale = max(size[0] / picture.width, size[1] / picture.height)
    width, height = size[0] / scale, size[1] / scale
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def encode_image(base: StableDiffusion, picture: Image.Image) -> torch.Tensor:
    """(1, C, h, w): the posterior's mean, so that nothing is left to chance."""
    return base.encode(np.array(picture.convert("RGB"))[None]).mean


def upscale(picture: Image.Image, times: float) -> Image.Image:
    """So many times as large, in multiples of 8."""
    return picture.resize(upscaled_size(picture.size, times), Image.Resampling.LANCZOS)


def upscaled_size(size: tuple[int, int], times: float) -> tuple[int, int]:
    """The size of `enlarged`."""
    return tuple(round(side * times / 8) * 8 for side in size)
