"""Looks that no artist drew: filters over whole scenes, as batched tensor operations.

Every filter gets images (B, 3, S, S) in 0..1, four knobs in 0..1 as (B, 4), and the noise bank of `places`; it returns
images like those. Lengths are fractions of S, so that a look is the same at every size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Filter = Callable[[Tensor, Tensor, Tensor], Tensor]
LEVELS = 4  # of each channel of a poster


def _blur(images: Tensor, radius: int) -> Tensor:
    """Return the mean over squares, twice, which is near to a Gaussian."""
    for _ in range(2):
        images = F.avg_pool2d(F.pad(images, [radius] * 4, mode="replicate"), 2 * radius + 1, 1)
    return images


def _grain(bank: Tensor, scale: int, size: int, knobs: Tensor) -> Tensor:
    """Return noise (B, 1, size, size) in 0..1, cut from a place of the bank that the knobs choose."""
    side = bank.shape[-1]
    line = torch.arange(size, device=bank.device) * (128 // size if size < 128 else 1)
    rows = (line[None] + (knobs[:, :1] * side).long()) % side
    columns = (line[None] + (knobs[:, 1:2] * side).long()) % side
    return bank[scale][rows[:, :, None], columns[:, None]][:, None]


def _edges(images: Tensor) -> Tensor:
    """Return the largest step of any channel to the next pixels, (B, 1, S, S)."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).abs()
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).abs()
    return (across + down).amax(1, keepdim=True)


def _flatten(images: Tensor, radius: int) -> Tensor:
    """Return each pixel as the mean of the calmest of the four squares around it (Kuwahara et al. 1976)."""
    width = radius + 1
    mean = F.avg_pool2d(F.pad(images, [radius] * 4, mode="replicate"), width, 1)
    square = F.avg_pool2d(F.pad(images**2, [radius] * 4, mode="replicate"), width, 1)
    spread = (square - mean**2).sum(1, keepdim=True)
    size = images.shape[-1]
    corners = [(y, x) for y in (0, radius) for x in (0, radius)]
    means = torch.stack([mean[..., y : y + size, x : x + size] for y, x in corners])
    spreads = torch.stack([spread[..., y : y + size, x : x + size] for y, x in corners])
    calmest = spreads.argmin(0, keepdim=True).expand(1, *images.shape)
    return means.gather(0, calmest)[0]


def watercolour(images: Tensor, knobs: Tensor, bank: Tensor) -> Tensor:
    """Pale washes that run together, with darker rims, on paper that shows at an uneven border."""
    size = images.shape[-1]
    wash = _flatten(images, max(1, size // 64))
    cloudy, fine = _grain(bank, 1, size, knobs), _grain(bank, 2, size, knobs.flip(1))
    rims = _blur(_edges(wash), size // 128).clamp(0, 1)
    ink = (1 - wash) * (0.62 + 0.34 * cloudy) * (0.9 + 0.2 * fine) + 0.22 * rims * (1 - wash).mean(1, keepdim=True)
    line = (torch.arange(size, device=images.device) + 0.5) / size
    inside = torch.minimum(line, 1 - line)
    border = torch.minimum(inside[:, None], inside[None])  # distance to the nearest side
    covered = ((border - 0.02 - 0.07 * cloudy) * 24).clamp(0, 1)
    paper = torch.tensor([0.985, 0.97, 0.93], device=images.device).view(1, 3, 1, 1)
    return (paper * (1 - ink * covered)).clamp(0, 1)


def neon(images: Tensor, knobs: Tensor, bank: Tensor) -> Tensor:
    """Glowing outlines in the colours of the things, in the dark."""
    size = images.shape[-1]
    edges = (_edges(_blur(images, size // 128)) * 3.6 - 0.2).clamp(0, 1)
    around = F.max_pool2d(images, 2 * (size // 42) + 1, 1, size // 42)  # the lighter side of an edge gives its colour
    vivid = around - around.amin(1, keepdim=True) * 0.85
    vivid = vivid / vivid.amax(1, keepdim=True).clamp_min(0.08)
    glow = _blur(edges, size // 24) * 1.3
    dark = images * 0.16 + torch.tensor([0.02, 0.01, 0.06], device=images.device).view(1, 3, 1, 1)
    return (dark + vivid * glow * 0.6 + (0.35 + 0.65 * vivid) * edges).clamp(0, 1)


def poster(images: Tensor, knobs: Tensor, bank: Tensor) -> Tensor:
    """Few, strong colours within thick black outlines."""
    size = images.shape[-1]
    calm = _flatten(images, max(1, size // 64))
    middle = calm.mean(1, keepdim=True)
    strong = ((middle + (calm - middle) * 1.6 - 0.5) * 1.2 + 0.5).clamp(0, 1)
    strong = _blur((strong * (LEVELS - 1)).round() / (LEVELS - 1), size // 128)
    edges = (_edges(_blur(images, size // 128)) * 5 - 0.9).clamp(0, 1)
    lines = F.max_pool2d(edges, 3, 1, 1)
    return strong * (1 - 0.92 * lines)


FILTERS: dict[str, Filter] = {"watercolour": watercolour, "neon": neon, "poster": poster}


def number(name: str) -> int:
    """Return the number of a filter as `apply` takes it; 0 is no filter."""
    return 1 + list(FILTERS).index(name) if name else 0


def apply(numbers: Tensor, images: Tensor, knobs: Tensor, bank: Tensor) -> None:
    """Put every image through the filter whose number (B,) it has, in place."""
    for name, look in FILTERS.items():
        rows = (numbers == number(name)).nonzero()[:, 0]
        if len(rows):
            images[rows] = look(images[rows], knobs[rows], bank)
