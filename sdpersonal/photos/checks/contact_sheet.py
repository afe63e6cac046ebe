"""Draw the contact sheet of a set: every photo whole, with its training crop, and its findings below."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ...display.image_grid import fit_text, load_font
from ..loading import Photo, PhotoSet
from .findings import Report

_TILE, _GAP, _TEXT = 240, 14, 20  # pixels: a photo's longer side, between tiles, a line of text
_INK, _PAPER, _FINDING = (30, 34, 40), (255, 255, 255), (196, 30, 36)
_INSIDE, _OUTSIDE = (255, 208, 0), 0.45  # the crop's outline; brightness factor of the rest of the photo
_MAX_COLUMNS = 8


def contact_sheet(photos: PhotoSet, report: Report) -> Image.Image:
    """Draw the contact sheet (RGB): photos are darkened outside their crop, findings are red."""
    findings = {
        photo.name: [finding.name for finding in report.findings if photo.name in finding.photos]
        for photo in photos.photos
    }
    lines = max(map(len, findings.values()))
    columns = min(_MAX_COLUMNS, max(3, math.ceil(math.sqrt(len(photos.photos) * 1.5))))
    width, height = _TILE + _GAP, _TILE + _GAP + _TEXT * (1 + lines)
    rows = math.ceil(len(photos.photos) / columns)
    page = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    for i, photo in enumerate(photos.photos):
        _paste_photo(page, photo, findings[photo.name], _GAP + i % columns * width, _GAP + i // columns * height)
    return page


def _paste_photo(page: Image.Image, photo: Photo, findings: Sequence[str], left: int, top: int) -> None:
    thumbnail = show_crop(photo)
    page.paste(thumbnail, (left + (_TILE - thumbnail.width) // 2, top + (_TILE - thumbnail.height) // 2))
    pen, font = ImageDraw.Draw(page), load_font(14)
    for line, text in enumerate([photo.name, *findings]):
        y = top + _TILE + 3 + line * _TEXT
        pen.text((left, y), fit_text(text, font, _TILE), _FINDING if line else _INK, font)
    if findings:
        pen.rectangle((left - 4, top - 4, left + _TILE + 3, top + _TILE + 3), outline=_FINDING, width=2)


def show_crop(photo: Photo) -> Image.Image:
    height, width = photo.pixels.shape[:2]
    scale = _TILE / max(height, width)
    small = Image.fromarray(photo.pixels).resize(
        (round(width * scale), round(height * scale)), Image.Resampling.LANCZOS
    )
    left, top = (round(offset * scale) for offset in photo.crop)
    side = round(min(height, width) * scale)
    image = small.point(lambda level: level * _OUTSIDE)
    box = (left, top, left + side, top + side)
    image.paste(small.crop(box), box[:2])
    ImageDraw.Draw(image).rectangle((left, top, left + side - 1, top + side - 1), outline=_INSIDE, width=2)
    return image
