"""Show the results of the photo checks on the page: a tile for each photo, and a summary."""

from __future__ import annotations

import functools
import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .... import storage
from ....config import ConceptKind, CropMode
from ....config.base import BaseKind
from ....photos.checks import ClipFeatures, Report, check
from ....photos.checks.across_photos import MIN_PHOTOS, edge_histogram
from ....photos.checks.contact_sheet import show_crop
from ....photos.loading import Photo, PhotoSet
from ..workspace import Workspace
from .uploads import PhotoUploads

_FRAME, _FRAME_WIDTH = (206, 44, 49), 6  # colour and pixels of the frame around a photo with something wrong
_PALE = 0.75  # share of white blended into a photo that is left out
_MARKS = {  # finding's name to the mark beside the photo's name
    "small": "small",
    "near-duplicates": "like another",
    "blurred": "blurred",
    "sideways": "on its side?",
    "dark": "dark",
    "burnt-out": "too bright",
    "washed-out": "pale",
    "two-subjects": "something else?",
}
_FIXES = {  # hints that differ from the command line's, since the page has its own way
    "small": "Take larger photos if you have some.",
    "near-duplicates": "Leave out all but the best; take others from another side or in another place.",
    "blurred": "Leave it out, or take it again with more light.",
    "sideways": "Rotate it, or leave it if it was meant so.",
    "one-background": "Take some elsewhere, or name the background: click a photo and write "
    "'{} on a white wall' as its caption.",
    "two-subjects": "Make two concepts: leave one of the two out. Ignore this if it is the same one.",
    "wrong-class": "Check the class noun: the most ordinary word is best.",
    "no-captions": "Say what is in each: click a photo and write 'a house in the style of {}' as its caption.",
}
_LEAVE_OUT = ("blurred", "dark", "burnt-out", "washed-out")
_MIN_PHOTOS = 3


@dataclass(frozen=True)
class PhotoReview:
    """Review of a page's photos. tiles: (image, caption) for each photo in upload order; summary: the text below them;
    count: photos to train on; has_advice: whether `apply_advice` would change anything."""

    tiles: list[tuple[str, str]]
    summary: str
    count: int
    has_advice: bool


def review_photos(
    uploads: PhotoUploads,
    workspace: Workspace,
    page: str,
    kind: ConceptKind,
    noun: str,
    crop: CropMode,
    base_kind: BaseKind | None = None,
) -> PhotoReview:
    """Check a page's photos. base_kind: the model to train. Raises UserError."""
    with uploads.lock:
        if not uploads.uploads:
            return PhotoReview([], "", 0, False)
        photos, left_out = uploads.used_photos(crop), uploads.left_out(crop)
        report = _check_photos(photos, kind, noun, base_kind)
        tiles = _make_tiles(uploads, photos, left_out, report, workspace.session_dir(page))
        return PhotoReview(
            tiles,
            _summary(report, left_out),
            len(photos.photos) if photos else 0,
            bool(_find_advice(uploads, photos, report)),
        )


def apply_advice(uploads: PhotoUploads, kind: ConceptKind, noun: str, crop: CropMode) -> None:
    """Rotate photos that lie on their side; leave out those that are blurred, badly lit or near-duplicates."""
    with uploads.lock:
        photos = uploads.used_photos(crop)
        for number, quarters in _find_advice(uploads, photos, _check_photos(photos, kind, noun)).items():
            uploads.rotate(number, quarters) if quarters else uploads.use(number, False)


def _check_photos(photos: PhotoSet | None, kind: ConceptKind, noun: str, base_kind: BaseKind | None = None) -> Report:
    if photos is None:
        return Report(0)
    return check(photos, kind, noun, _clip_features() if kind != "style" else None, base_kind)


@functools.cache
def _clip_features() -> ClipFeatures:
    from ....evaluation import Scorer

    return Scorer()


def _find_advice(uploads: PhotoUploads, photos: PhotoSet | None, report: Report) -> dict[int, int]:
    """Return {number of a photo: quarters to rotate it, 0 to leave it out}."""
    numbers = {upload.name: number for number, upload in enumerate(uploads.uploads)}
    advice: dict[int, int] = {}
    remaining = report.count
    for name in _bad_photos(report):
        if remaining > _MIN_PHOTOS:
            advice[numbers[name]] = 0
            remaining -= 1
    for finding in report.findings:
        if photos and finding.name == "sideways":
            turns = _find_rotations(photos, finding.photos)
            advice |= {numbers[name]: turns[name] for name in finding.photos if numbers[name] not in advice}
    return advice


def _bad_photos(report: Report) -> list[str]:
    """Name the photos to leave out, worst first: bad ones, and all near-duplicates but the first good one."""
    bad = [name for finding in report.findings if finding.name in _LEAVE_OUT for name in finding.photos]
    for finding in report.findings:
        if finding.name == "near-duplicates":
            best = next((name for name in finding.photos if name not in bad), finding.photos[0])
            bad += [name for name in finding.photos if name != best]
    return list(dict.fromkeys(bad))


def _find_rotations(photos: PhotoSet, sideways: Sequence[str]) -> dict[str, int]:
    """Return by how many quarters to rotate each photo so that it lies as the others do."""
    upright = [edge_histogram(photo.square()) for photo in photos.photos if photo.name not in sideways]
    if len(upright) < MIN_PHOTOS - 1:
        return dict.fromkeys(sideways, 1)
    return {photo.name: _best_rotation(photo, upright) for photo in photos.photos if photo.name in sideways}


def _best_rotation(photo: Photo, upright: Sequence[np.ndarray]) -> int:
    """Return 1 or 3 quarters, whichever makes the photo's edges more like those of the upright photos."""

    def similarity(quarters: int) -> float:
        rotated = edge_histogram(np.rot90(photo.square(), quarters))
        return float(sum(rotated @ other for other in upright))

    return max((1, 3), key=similarity)


def _summary(report: Report, left_out: PhotoSet | None) -> str:
    left_out_note = f" {len(left_out.photos)} left out." if left_out else ""
    if not report.count:
        return f"No photo is used.{left_out_note}"
    photos = "1 photo" if report.count == 1 else f"{report.count} photos"
    if not report.findings:
        return f"{photos}: no problems found.{left_out_note}"
    lines = [
        f"• {finding.message} {finding.effect} {_FIXES.get(finding.name, finding.hint)}" for finding in report.findings
    ]
    count_text = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return "\n".join([f"{photos}; {count_text} found, which you may ignore:{left_out_note}", *lines])


def _make_tiles(
    uploads: PhotoUploads, photos: PhotoSet | None, left_out: PhotoSet | None, report: Report, session_dir: Path
) -> list:
    photos_by_name = {photo.name: photo for photo_set in (photos, left_out) if photo_set for photo in photo_set.photos}
    new_folder, old_folders = session_dir / f"photos-{secrets.token_hex(4)}", sorted(session_dir.glob("photos-*"))
    tiles = []
    with storage.new_folder(new_folder) as staging_folder:
        for number, upload in enumerate(uploads.uploads):
            marks = [
                _MARKS[finding.name]
                for finding in report.findings
                if finding.name in _MARKS and upload.name in finding.photos
            ]
            if not upload.used:
                marks = ["left out"]
            elif upload.name not in photos_by_name:
                marks = ["the same as another"]  # identical after its rotation
            image = (
                show_crop(photos_by_name[upload.name])
                if upload.name in photos_by_name
                else _open_photo(uploads.path(number))
            )
            storage.write_bytes(
                staging_folder / f"{upload.name}.jpg", _jpeg(_add_frame(image, upload.used, bool(marks)))
            )
            caption = f"{upload.name.removeprefix('photo ')}: {', '.join(marks)}" if marks else upload.name
            tiles.append((str(new_folder / f"{upload.name}.jpg"), caption))
    for folder in old_folders[:-1]:  # the page may still be loading the last one
        storage.remove(folder)
    return tiles


def _open_photo(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.thumbnail((240, 240))
        return image.convert("RGB")


def _add_frame(image: Image.Image, used: bool, marked: bool) -> Image.Image:
    if not used:
        return Image.blend(image, Image.new("RGB", image.size, "white"), _PALE)
    if marked:
        ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline=_FRAME, width=_FRAME_WIDTH)
    return image


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
