"""Sheets: many small pictures with their captions in one PNG, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor


def sheet(images: Tensor, captions: Sequence[str], path: Path, columns: int = 8, cell: int = 128) -> None:
    """(N, 3, H, W) in -1..1 and N captions -> a PNG."""
    strip = 26 if any(captions) else 0
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (cell + 4), rows * (cell + strip + 4)), "white")
    pen = ImageDraw.Draw(page)
    for i, (picture, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = i % columns * (cell + 4), i // columns * (cell + strip + 4)
        page.paste(to_image(picture).resize((cell, cell), Image.LANCZOS), (x, y))
        for line, start in enumerate((0, 22)):
            pen.text((x + 1, y + cell + 1 + 12 * line), caption[start : start + 22], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def to_image(image: Tensor) -> Image.Image:
    """(3, H, W) in -1..1 -> PIL."""
    data = ((image.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(data.permute(1, 2, 0).contiguous().numpy())
