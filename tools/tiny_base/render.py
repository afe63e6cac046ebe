"""Scenes -> pixels, as batched tensor operations on whatever device the sprites are on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import filters, places, scenes


class Renderer:
    """Paints packed scenes. Holds the sprites at two sizes, so that small things are not aliased."""

    def __init__(self, sprites: np.ndarray, device: str | torch.device = "cpu", size: int = 128):
        full = torch.from_numpy(sprites).to(device).permute(0, 3, 1, 2)  # (N, 4, S, S) uint8, premultiplied
        self.levels = (full.contiguous(), F.avg_pool2d(full.float(), 2).round().to(torch.uint8))
        self.bank = places.noise_bank(device)
        self.device, self.size = torch.device(device), size

    @torch.no_grad()
    def __call__(self, packed: scenes.Packed) -> Tensor:
        """Packed scenes -> (B, 3, size, size) float in -1..1."""
        return self.with_cover(packed)[0]

    @torch.no_grad()
    def with_cover(self, packed: scenes.Packed) -> tuple[Tensor, Tensor]:
        """Packed scenes -> pictures in -1..1, and (B, 1, size, size): 1 where a thing is, 0 where none is."""
        to = lambda key: torch.as_tensor(packed[key]).to(self.device)  # noqa: E731
        things = to("things")
        picture = places.paint(to("kinds"), to("backs"), self.size, self.bank)
        cover = torch.zeros_like(picture[:, :1])
        for layer in range(things.shape[1]):
            rows = (things[:, layer, -1] > 0).nonzero()[:, 0]
            for small in (False, True):
                self._compose(picture, cover, rows, things[rows, layer], small)
        filters.apply(to("filters"), picture, to("backs")[:, 6:], self.bank)
        return picture * 2 - 1, cover

    def _compose(self, image: Tensor, cover: Tensor, rows: Tensor, t: Tensor, small: bool) -> None:
        """Lay one thing each over the pictures in `rows`, for things whose best sprite size is (not) the small one."""
        pick = (t[:, 3] * self.size < self.levels[1].shape[-1] * 0.9) == small
        rows, t = rows[pick], t[pick]
        if not len(rows):
            return
        sprite = self.levels[small][t[:, 0].long()].float() / 255
        layer = F.grid_sample(
            sprite,
            F.affine_grid(_inverse_affine(t), (len(t), 4, self.size, self.size), align_corners=False),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        colour, alpha = _apply_paint(layer, t), layer[:, 3:]
        image[rows] = image[rows] * (1 - alpha) + colour
        cover[rows] = cover[rows].maximum(alpha)


def _inverse_affine(t: Tensor) -> Tensor:
    """Where each pixel of the picture lies in the sprite: (B, 2, 3), both in -1..1."""
    x, y, size, angle, flip = t[:, 1] * 2, t[:, 2] * 2, t[:, 3], t[:, 4], 1 - 2 * t[:, 5]
    c, s = torch.cos(angle) / size, torch.sin(angle) / size
    a = torch.stack([c * flip, s * flip, -(c * x + s * y) * flip], 1)
    b = torch.stack([-s, c, s * x - c * y], 1)
    return torch.stack([a, b], 1)


def _apply_paint(layer: Tensor, t: Tensor) -> Tensor:
    """Premultiplied colours; things with a paint keep only their light and shade."""
    rgb, alpha = layer[:, :3], layer[:, 3:]
    light = rgb.mean(1, keepdim=True) + 0.35 * alpha
    painted = (t[:, 7:10, None, None] * light * 1.1).minimum(alpha)
    return torch.lerp(rgb, painted, t[:, 6, None, None, None])


def render(renderer: Renderer, some_scenes: Sequence[scenes.Scene]) -> Tensor:
    """Scenes -> pictures in -1..1."""
    return renderer(scenes.pack(some_scenes))
