"""Pictures to begin from: image-to-image, and parts to draw anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from .. import files
from ..bases import StableDiffusion
from ..config import Request
from ..errors import PersonalError
from ..photo_decode import FORMATS, Unusable, decode, shorter_side
from ..recipes import pixels_sum
from .denoising import Start

_LIMIT = 100 << 20
_LEAST, _MOST = 64, 2048  # pixels of the shorter side
_FEATHER = 4  # pixels over which a drawn part passes into what was there


@dataclass(frozen=True)
class Source:
    """A start picture in its size, and where to draw anew: white in `mask`, in the same size."""

    picture: Image.Image
    mask: Image.Image | None
    picture_sum: str
    mask_sum: str

    def start(self, base: StableDiffusion) -> Start:
        return Start(latents_of(base, self.picture), self._latent_mask(base))

    def _latent_mask(self, base: StableDiffusion) -> torch.Tensor | None:
        if self.mask is None:
            return None
        # A latent that any drawn pixel touches is drawn; the picture is put together in pixels afterwards.
        white = torch.from_numpy(np.array(self.mask)) >= 128
        return torch.nn.functional.max_pool2d(white[None, None].float(), base.downscale).to(base.device)

    def composed(self, drawn: Image.Image) -> Image.Image:
        """Where nothing was to be drawn, the start picture's own pixels."""
        if self.mask is None:
            return drawn
        soft = self.mask.filter(ImageFilter.GaussianBlur(_FEATHER))
        return Image.composite(drawn, self.picture, soft)


def source_of(request: Request, base: StableDiffusion) -> Source | None:
    """Raises PersonalError for what is no picture, or too small."""
    if request.start is None:
        return None
    whole = open_picture(request.start)
    size = request.pixels or near_size(whole.size, base)
    mask = open_picture(request.mask) if request.mask else None
    return Source(
        cropped(whole, size),
        cropped(mask, size).convert("L").point(lambda value: 255 * (value >= 128)) if mask else None,
        pixels_sum(whole),
        pixels_sum(mask) if mask else "",
    )


def open_picture(path: Path) -> Image.Image:
    """RGB, upright, sRGB, as large as it is up to 2,048 pixels. Raises PersonalError for what is no picture."""
    data = files.read_bytes(path, _LIMIT)
    try:
        pixels, _ = decode(data, min(_MOST, shorter_side(data)), _LEAST)
    except Unusable as error:
        raise PersonalError(f"{path.name} {error}.", f"Give a picture: {FORMATS}.") from None
    except Exception:  # the size of a damaged one
        raise PersonalError(f"{path.name} is damaged; I cannot decode it.", f"Give a picture: {FORMATS}.") from None
    return Image.fromarray(pixels)


def near_size(size: tuple[int, int], base: StableDiffusion) -> tuple[int, int]:
    """The picture's shape in about as many pixels as the base was trained on, in multiples of 8."""
    scale = base.resolution / (size[0] * size[1]) ** 0.5
    return tuple(min(2048, max(64, round(side * scale / 8) * 8)) for side in size)


def cropped(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture in another size, RGB."""
    scale = max(size[0] / picture.width, size[1] / picture.height)
    width, height = size[0] / scale, size[1] / scale
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def latents_of(base: StableDiffusion, picture: Image.Image) -> torch.Tensor:
    """(1, C, h, w): the posterior's mean, so that nothing is left to chance."""
    return base.encode(np.array(picture.convert("RGB"))[None]).mean


def enlarged(picture: Image.Image, times: float) -> Image.Image:
    """So many times as large, in multiples of 8."""
    return picture.resize(large_size(picture.size, times), Image.Resampling.LANCZOS)


def large_size(size: tuple[int, int], times: float) -> tuple[int, int]:
    """The size of `enlarged`."""
    return tuple(round(side * times / 8) * 8 for side in size)
