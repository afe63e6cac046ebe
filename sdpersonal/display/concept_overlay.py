"""Draw where concepts are over an image: each one's heat and box in a colour of its own, with its token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .image_grid import fit_text, load_font

_MIN_SIDE = 512  # pixels of the longer side, for labels that can be read
_COLOURS = (  # Okabe and Ito 2008: they differ for colour-blind people too
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
)
_MAX_OPACITY = 0.65  # of the hottest place
_BACKGROUND_BRIGHTNESS = 0.7  # of the image, so that colours stand out
_PADDING = 4  # pixels around a label
_Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class ConceptArea:
    """Where one concept is: left, top, right and bottom as fractions of the image; heat: as in a recipe's presence."""

    label: str
    box: _Rectangle
    heat: str = ""


def draw_concept_areas(image: Image.Image, areas: Sequence[ConceptArea]) -> Image.Image:
    """Return the image with the areas drawn over it, enlarged if it is small."""
    scale = max(1.0, _MIN_SIDE / max(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    drawn = image.convert("RGB").resize(size, Image.Resampling.LANCZOS).point(lambda v: int(v * _BACKGROUND_BRIGHTNESS))
    for number, area in enumerate(areas):
        if area.heat:
            drawn.paste(_colour_of(number), (0, 0, *size), _opacity(area.heat, size))
    pen, font = ImageDraw.Draw(drawn), load_font(max(14, max(size) // 36))
    line = max(2, max(size) // 200)
    for number, area in enumerate(areas):
        pen.rectangle(_pixels(area.box, size), outline=_colour_of(number), width=line)
    labels: list[_Rectangle] = []
    for number, area in enumerate(areas):
        left, top, *_ = _pixels(area.box, size)
        labels.append(_draw_label(pen, font, area.label, (left, top), _colour_of(number), size, labels))
    return drawn


def _colour_of(number: int) -> tuple[int, int, int]:
    return _COLOURS[number % len(_COLOURS)]


def _opacity(heat: str, size: tuple[int, int]) -> Image.Image:
    """Return a mask of that size from a square of digits. Only the upper half of the range is seen."""
    side = round(len(heat) ** 0.5)
    cells = bytes(round(max(0, 2 * int(digit, 16) - 15) / 15 * 255 * _MAX_OPACITY) for digit in heat)
    return Image.frombytes("L", (side, side), cells).resize(size, Image.Resampling.BICUBIC)


def _pixels(box: _Rectangle, size: tuple[int, int]) -> _Rectangle:
    """Return the box in pixels, its last row and column inside the image."""
    (left, top, right, bottom), (width, height) = box, size
    return round(left * width), round(top * height), round(right * width) - 1, round(bottom * height) - 1


def _draw_label(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    text: str,
    at: tuple[float, float],
    colour: tuple[int, int, int],
    size: tuple[int, int],
    taken: Sequence[_Rectangle],
) -> _Rectangle:
    """Draw a label inside the image, as near to a place as those that are there leave room; return its rectangle."""
    text = fit_text(text, font, size[0] - 2 * _PADDING)
    width, height = font.getlength(text) + 2 * _PADDING, font.size * 1.2 + _PADDING
    left, top = max(0.0, min(at[0], size[0] - width)), max(0.0, min(at[1], size[1] - height))
    in_the_way = [other for other in taken if left <= other[2] and other[0] <= left + width]
    tops = [top, *(y for other in in_the_way for y in (other[3] + 1, other[1] - height - 1))]
    free = [y for y in tops if 0 <= y <= size[1] - height and not any(_meets(y, height, other) for other in in_the_way)]
    top = min(free, key=lambda y: abs(y - top), default=top)
    rectangle = (left, top, left + width, top + height)
    pen.rectangle(rectangle, fill=colour)
    pen.text((left + _PADDING, top + height / 2), text, (0, 0, 0), font, anchor="lm")
    return rectangle


def _meets(top: float, height: float, other: _Rectangle) -> bool:
    return top <= other[3] and other[1] <= top + height
