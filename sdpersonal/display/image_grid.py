"""Draw labelled grids of images.

Labels are wrapped here, not by Pillow's `ImageText.Text.wrap`: that raises for a word wider than the line, such as a
long token or file name, and marks no text that it leaves out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import takewhile
from typing import cast

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

_GAP = 6
_LINE_SPACING = 3  # pixels between lines
_MAX_LINES = 8  # of a title, or above a column
_MAX_COLUMNS = 5  # images in a row of a captioned grid
_TEXT_COLOUR, _BACKGROUND = (30, 34, 40), (255, 255, 255)


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    tile_size: int = 192,
    title: str = "",
) -> Image.Image:
    """Draw rows of images, each fitted into a square of `tile_size` pixels, with labels to the left and on top.

    Long labels are wrapped, and cut if they do not fit.
    """
    font = load_font(max(11, tile_size // 13))
    line = round(font.size * 1.2) + _LINE_SPACING
    step = tile_size + _GAP
    margin = int(tile_size * 1.15) if row_labels else 0
    width = margin + max(len(row) for row in rows) * step + _GAP
    above = _wrap(title, font, width - 4 * _GAP, _MAX_LINES) if title else []
    columns = [_wrap(label, font, tile_size, _MAX_LINES) for label in column_labels]
    top = len(above) * line + (2 * _GAP if above else 0)
    head = max([tile_size // 6, *(len(lines) * line + _GAP for lines in columns)]) if columns else 0
    page = Image.new("RGB", (width, top + head + len(rows) * step + _GAP), _BACKGROUND)
    pen = ImageDraw.Draw(page)
    _draw_text(pen, (2 * _GAP, top / 2 + _GAP / 2), above, font, "lm")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            page.paste(_fit_tile(image, tile_size), (margin + _GAP + x * step, top + head + _GAP + y * step))
    for y, label in enumerate(row_labels):
        lines = _wrap(label, font, margin - _GAP * 3, tile_size // line)
        _draw_text(pen, (_GAP * 2, top + head + _GAP + y * step + tile_size / 2), lines, font, "lm")
    for x, lines in enumerate(columns):
        _draw_text(pen, (margin + _GAP + x * step + tile_size / 2, top + head / 2 + 2), lines, font, "mm")
    return page


def captioned_grid(captioned: Sequence[tuple[Image.Image, str]], tile_size: int = 192) -> Image.Image:
    """Draw all images in one grid, row by row, each with its caption, if any, above it."""
    columns = min(_MAX_COLUMNS, math.ceil(math.sqrt(len(captioned))))
    rows = [captioned[first : first + columns] for first in range(0, len(captioned), columns)]
    named = any(text for _, text in captioned)
    parts = [
        labelled_grid([[image for image, _ in row]], (), [text for _, text in row] if named else (), tile_size)
        for row in rows
    ]
    page = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), _BACKGROUND)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def differing_words(texts: Sequence[str]) -> list[str]:
    """Return the words of each text between the common beginning and the common end, without commas at their ends."""
    words = [text.split() for text in texts]
    begin = _common_words(words)
    behind = _common_words([text_words[begin:][::-1] for text_words in words])
    return [" ".join(text_words[begin : len(text_words) - behind]).strip(",; ") for text_words in words]


def _common_words(texts: Sequence[list[str]]) -> int:
    """Return how many words at the beginning all texts share."""
    return sum(1 for _ in takewhile(lambda words: len({*words}) == 1, zip(*texts, strict=False)))


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, of `size` pixels."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # every wheel of Pillow has FreeType


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the text, shortened with an ellipsis if it is wider than `width` pixels."""
    return text if font.getlength(text) <= width else _ellipsize(text, font, width)


def _ellipsize(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def encode_png(image: Image.Image, text: PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def encode_jpeg(image: Image.Image, quality: int = 80) -> bytes:
    """Encode as JPEG, without metadata."""
    buffer = io.BytesIO()
    bare = image.convert("RGB")
    Image.frombytes("RGB", bare.size, bare.tobytes()).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _fit_tile(image: Image.Image, tile: int) -> Image.Image:
    scale = tile / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    square = Image.new("RGB", (tile, tile), _BACKGROUND)
    square.paste(
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS), ((tile - size[0]) // 2, (tile - size[1]) // 2)
    )
    return square


def _draw_text(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], lines: list[str], font: ImageFont.FreeTypeFont, anchor: str
) -> None:
    align = "center" if anchor == "mm" else "left"
    pen.multiline_text(at, "\n".join(lines), _TEXT_COLOUR, font, anchor=anchor, spacing=_LINE_SPACING, align=align)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, max_lines: int) -> list[str]:
    """Wrap the text to at most `max_lines` lines of at most `width` pixels; longer words are broken."""
    lines = [""]
    for word in text.split():
        for part in _break_word(word, font, width):
            longer = f"{lines[-1]} {part}".strip()
            if font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
        if len(lines) > max_lines:
            return [*lines[: max_lines - 1], _ellipsize(lines[max_lines - 1], font, width)]
    return lines


def _break_word(word: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    parts = [""]
    for letter in word:
        if parts[-1] and font.getlength(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts
