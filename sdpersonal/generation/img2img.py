"""Load init images and masks for img2img and inpainting.

Pixels of the mask lighter than middle grey are generated anew; all others keep the init image's bits. Transparent
pixels count as black, whatever colour lies under them, so white strokes on a transparent layer are a mask, and black
strokes are none. A mask of another size is stretched to the init image's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter

from .. import storage
from ..config import GenerateRequest
from ..errors import UserError, printable
from ..image_metadata import pixels_sha256
from ..models import StableDiffusion
from ..photos.decode import FORMATS, UnusablePhoto, decode, shorter_side
from .denoise import InitLatents

_MAX_BYTES = 100 << 20
_MIN_SIDE, _MAX_SIDE = 64, 2048  # pixels of the shorter side
_SAME_SHAPE = 0.02  # relative difference of width / height: less is rounding
_FEATHER = 4  # pixels over which a generated region blends into the init image


@dataclass(frozen=True)
class InitImage:
    """An init image in its final size, and a mask of the same size, white where to generate anew."""

    image: Image.Image
    mask: Image.Image | None
    image_sha256: str
    mask_sha256: str

    def latents(self, base: StableDiffusion) -> InitLatents:
        return InitLatents(encode_image(base, self.image), self._latent_mask(base))

    def _latent_mask(self, base: StableDiffusion) -> torch.Tensor | None:
        if self.mask is None:
            return None
        # A latent is generated anew if any of its pixels is white; the exact mask is applied in pixels by `composite`.
        white = torch.from_numpy(np.array(self.mask)) >= 128
        return torch.nn.functional.max_pool2d(white[None, None].float(), base.vae_scale_factor).to(base.device)

    def composite(self, generated: Image.Image) -> Image.Image:
        """Restore the init image's own pixels outside the mask."""
        if self.mask is None:
            return generated
        # The mask is softened inside its edge only: outside, the init image stays unchanged to the bit.
        soft = ImageChops.darker(self.mask.filter(ImageFilter.GaussianBlur(_FEATHER)), self.mask)
        return Image.composite(generated, self.image, soft)


def load_init_image(request: GenerateRequest, base: StableDiffusion) -> InitImage | None:
    """Load the request's init image and mask. Raises UserError for a file that is no image, or too small."""
    if request.init_image is None:
        return None
    image = open_image(request.init_image)
    size = request.width_height or native_size(image.size, base)
    mask = open_mask(request.mask) if request.mask else None
    return InitImage(
        center_crop(image, size),
        _white(center_crop(mask.resize(image.size, Image.Resampling.LANCZOS), size)) if mask else None,
        pixels_sha256(image),
        pixels_sha256(mask) if mask else "",
    )


def open_image(path: Path, background: str = "white") -> Image.Image:
    """Open an image as upright sRGB, in its own size up to 2,048 pixels for the shorter side.

    background: the colour of transparent pixels. Raises UserError for a file that is no image.
    """
    data = storage.read_bytes(path, _MAX_BYTES)
    name = printable(path.name)
    try:
        pixels, _ = decode(data, min(_MAX_SIDE, shorter_side(data)), _MIN_SIDE, background)
    except UnusablePhoto as error:
        raise UserError(f"{name} {error}.", f"Give an image: {FORMATS}.") from None
    except Exception:  # reading the size of a damaged file
        raise UserError(f"{name} is damaged and cannot be decoded.", f"Give an image: {FORMATS}.") from None
    return Image.fromarray(pixels)


def open_mask(path: Path) -> Image.Image:
    """Open a mask as `open_image` does, with black where it is transparent. Raises UserError."""
    return open_image(path, background="black")


def mask_note(request: GenerateRequest) -> str:
    """Return a warning about a request's mask, or "". Raises UserError for an init image or mask that cannot be read.

    The user sees it before anything is computed.
    """
    if request.init_image is None:
        return ""
    image = open_image(request.init_image)
    if request.mask is None:
        return ""
    mask, name = open_mask(request.mask), printable(request.mask.name)
    if not _white(mask).getbbox():
        return f"{name} has nothing white, so nothing of the init image changes. Paint in white what should change."
    ratios = [item.width / item.height for item in (mask, image)]
    if abs(ratios[0] / ratios[1] - 1) > _SAME_SHAPE:
        sizes = f"{mask.width}x{mask.height}", f"{image.width}x{image.height}"
        return f"{name} is {sizes[0]} and the init image {sizes[1]}: the mask is stretched to it."
    return ""


def _white(mask: Image.Image) -> Image.Image:
    """Threshold a mask: 255 where it is lighter than middle grey, else 0."""
    return mask.convert("L").point(lambda value: 255 * (value >= 128))


def native_size(size: tuple[int, int], base: StableDiffusion) -> tuple[int, int]:
    """Return a size with the image's aspect ratio and about the base's training resolution, in multiples of 8."""
    scale = base.resolution / (size[0] * size[1]) ** 0.5
    width, height = (min(2048, max(64, round(side * scale / 8) * 8)) for side in size)
    return width, height


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop the middle of an image and resize it to `size`, RGB."""
    scale = max(size[0] / image.width, size[1] / image.height)
    width, height = size[0] / scale, size[1] / scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def encode_image(base: StableDiffusion, image: Image.Image) -> torch.Tensor:
    """Encode an image to latents (1, C, h, w): the posterior's mean, so that the result is deterministic."""
    return base.encode(np.array(image.convert("RGB"))[None]).mean


def upscale(image: Image.Image, scale: float) -> Image.Image:
    """Enlarge an image by a factor, to multiples of 8."""
    return image.resize(upscaled_size(image.size, scale), Image.Resampling.LANCZOS)


def upscaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the size of the result of `upscale`."""
    return round(size[0] * scale / 8) * 8, round(size[1] * scale / 8) * 8
