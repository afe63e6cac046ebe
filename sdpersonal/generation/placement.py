"""Place the subjects of a composition that have no region of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..prompts import ConceptRef, Prompt, Region, Text

_ABOVE = re.compile(r"\b(?:on\s+top\s+of|above|over)\b", re.IGNORECASE)
_BELOW = re.compile(r"\b(?:beneath|under|below)\b", re.IGNORECASE)


def place_subjects(prompt: Prompt, references: Sequence[ConceptRef]) -> list[Region]:
    """Return where the subjects are: as given, or side by side in their order, or one above the other, in the columns
    that are farthest from what is given."""
    count = len(references)
    columns = [Region(i / count, 0.0, (i + 1) / count, 1.0) for i in range(count)]
    if count == 2:
        places = [i for i, piece in enumerate(prompt.pieces) if any(piece is reference for reference in references)]
        between = " ".join(piece.text for piece in prompt.pieces[places[0] : places[1]] if isinstance(piece, Text))
        upper, lower = Region(0.0, 0.0, 1.0, 0.5), Region(0.0, 0.5, 1.0, 1.0)
        columns = [upper, lower] if _ABOVE.search(between) else columns
        columns = [lower, upper] if _BELOW.search(between) else columns
    regions = [reference.region for reference in references if reference.region]
    free = sorted(columns, key=lambda column: sum(_shared_area(column, region) for region in regions))
    free = sorted(free[: count - len(regions)], key=columns.index)
    return [reference.region or free.pop(0) for reference in references]


def _shared_area(a: Region, b: Region) -> float:
    """Return the area that two regions share, as a fraction of the image."""
    width, height = min(a.right, b.right) - max(a.left, b.left), min(a.bottom, b.bottom) - max(a.top, b.top)
    return max(0.0, width) * max(0.0, height)
