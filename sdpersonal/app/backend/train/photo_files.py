"""Read dropped photo files: their limits, pixels and captions; and the sample sets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from .... import storage
from ....config import ConceptKind
from ....config.text_checks import encoding_problem
from ....display.image_grid import encode_jpeg
from ....errors import DiskFull, UserError
from ....photos import SAMPLES
from ....photos.captions import Refused, lines_of
from ....photos.decode import FORMATS, decode, shorter_side

MAX_UPLOADS = 40  # photos
MAX_TOTAL = 1 << 30  # bytes of one drop
MIN_FREE_BYTES = 1 << 30  # bytes free on the disk below which no photos are accepted
JPEG_QUALITY = 88  # of photos on the page
SAMPLE_SIDE = 192  # pixels of a sample set's thumbnail
MAX_CAPTION = 200_000  # bytes


@dataclass(frozen=True)
class SampleSet:
    """Photos to try with. id: name of their folder in photos.SAMPLES; name: for the concept."""

    id: str
    title: str
    kind: ConceptKind
    noun: str
    name: str

    def files(self) -> list[Path]:
        return sorted((SAMPLES / self.id).iterdir())


SAMPLE_SETS = (
    SampleSet("teddy-bear", "A teddy bear", "object", "bear", "teddy"),
    SampleSet("cyanotype", "A style: cyanotypes", "style", "cyanotype", "cyanotype"),
)


@lru_cache(maxsize=len(SAMPLE_SETS))
def sample_jpeg(set_id: str) -> bytes:
    """Return a thumbnail of a sample set. Raises UserError if there is none of that id."""
    image = Image.fromarray(decode_photo(find_samples(set_id).files()[0].read_bytes(), SAMPLE_SIDE))
    return encode_jpeg(image, JPEG_QUALITY)


def find_samples(set_id: str) -> SampleSet:
    """Return a sample set. Raises UserError if there is none of that id."""
    samples = next((samples for samples in SAMPLE_SETS if samples.id == set_id), None)
    if samples is None:
        raise UserError("There is no such sample set.", "Choose another.")
    return samples


def check_uploads(photos: Sequence[Path], available: int, folder: Path) -> None:
    """Check the number and size of dropped photos; available: how many more fit. Raises UserError, or DiskFull if the
    disk is nearly full."""
    if len(photos) > available:
        problem = f"These are {len(photos):,} files; at most {MAX_UPLOADS} photos are allowed in all."
        raise UserError(problem, "Choose 4 to 10 good ones of one subject.")
    if not photos:
        raise UserError("There are no photos among these files.", f"Supported formats: {FORMATS}.")
    size = sum(path.stat().st_size for path in photos)
    if size > MAX_TOTAL:
        raise UserError(
            f"These are {size / 1e9:.1f} GB; at most {MAX_TOTAL / 1e9:.0f} GB are allowed at once.", "Add fewer."
        )
    if storage.free_bytes(folder) < MIN_FREE_BYTES + size:
        raise DiskFull("The disk is nearly full, so no photos were added.", "Free some disk space first.")


def parse_captions(text: str) -> tuple[str, ...]:
    """Split typed text into captions and validate them. Raises UserError."""
    example = "Like: {} in the snow"
    if problem := encoding_problem(text):
        raise UserError(f"The caption {problem.text}", problem.hint)
    try:
        lines = lines_of(text)
    except Refused as reason:
        raise UserError(f"The caption {reason}.", example) from None
    if not all("{}" in line for line in lines):
        raise UserError("A caption needs {} once, where the subject's token goes.", example)
    return lines


def decode_photo(data: bytes, max_side: int) -> np.ndarray:
    """Decode to uint8 (H, W, 3), upright, sRGB, with the shorter side at most `max_side`. Raises UnusablePhoto."""
    try:
        side = min(max_side, shorter_side(data))
    except Exception:  # damaged: `decode` raises the exact error
        side = max_side
    return decode(data, side)[0]


def encode_photo(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
