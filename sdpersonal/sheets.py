"""Grids of pictures with labels, for looking at many at once."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

_GAP = 6
_INK, _PAPER = (30, 34, 40), (255, 255, 255)


def sheet(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    tile: int = 192,
) -> Image.Image:
    """Rows of pictures, each fitted into a square of `tile` pixels, labels to the left and on top."""
    font = ImageFont.load_default(size=max(11, tile // 13))
    margin = int(tile * 1.15) if row_labels else 0
    head = tile // 6 if column_labels else 0
    columns = max(len(row) for row in rows)
    step = tile + _GAP
    page = Image.new("RGB", (margin + columns * step + _GAP, head + len(rows) * step + _GAP), _PAPER)
    pen = ImageDraw.Draw(page)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            page.paste(_fitted(picture, tile), (margin + _GAP + x * step, head + _GAP + y * step))
    for y, label in enumerate(row_labels):
        top = head + _GAP + y * step
        pen.multiline_text(
            (_GAP * 2, top + tile / 2), _wrapped(label, font, margin - _GAP * 3), _INK, font, anchor="lm", spacing=3
        )
    for x, label in enumerate(column_labels):
        pen.text((margin + _GAP + x * step + tile / 2, head / 2 + 2), label, _INK, font, anchor="mm")
    return page


def png(picture: Image.Image, text: PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def _fitted(picture: Image.Image, tile: int) -> Image.Image:
    scale = tile / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    square = Image.new("RGB", (tile, tile), _PAPER)
    square.paste(
        picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), ((tile - size[0]) // 2, (tile - size[1]) // 2)
    )
    return square


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
