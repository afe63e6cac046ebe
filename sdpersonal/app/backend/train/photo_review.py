"""What the photo doctor sees on a tray, as a page shows it: a tile for each photo, and plain words."""

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
from ....photos.checks import ClipFeatures, Report, check
from ....photos.checks.contact_sheet import show_crop
from ....photos.checks.rotation import MIN_PHOTOS, edge_histogram
from ....photos.loading import Photo, PhotoSet
from ..workspace import Workspace
from .uploads import PhotoUploads

_FRAME, _FRAME_WIDTH = (206, 44, 49), 6  # colour and pixels of the frame around a photo with something wrong
_PALE = 0.75  # how white a photo is that is left out
_MARKS = {  # of one photo, beside its name
    "small": "small",
    "near-duplicates": "like another",
    "blurred": "blurred",
    "sideways": "on its side?",
    "dark": "dark",
    "burnt-out": "too bright",
    "washed-out": "pale",
    "two-subjects": "something else?",
}
_FIXES = {  # where the page has a way of its own
    "small": "Take larger photos if you have some.",
    "near-duplicates": "Leave out all but the best; take others from another side or in another place.",
    "blurred": "Leave it out, or take it again with more light.",
    "sideways": "Turn it upright, or leave it if it was meant so.",
    "one-background": "Take some elsewhere, or name the background: click a photo and write "
    "'{} on a white wall' as its caption.",
    "two-subjects": "Make two concepts: leave one of the two out. Ignore this if it is the same one.",
    "wrong-class": "Check what you wrote for 'What is it?': the most ordinary word is best.",
    "no-captions": "Say what is in each: click a photo and write 'a house in the style of {}' as its caption.",
}
_LEAVE_OUT = ("blurred", "dark", "burnt-out", "washed-out")
_MIN_PHOTOS = 3


@dataclass(frozen=True)
class PhotoReview:
    """tiles: (picture, caption) for each photo in the order of the tray; words: what there is to say; count: photos
    that will be learned from; helpful: whether `follow_advice` would change anything."""

    tiles: list[tuple[str, str]]
    words: str
    count: int
    has_advice: bool


def review_photos(tray: PhotoUploads, house: Workspace, page: str, kind: str, noun: str, crop: str) -> PhotoReview:
    """Examine a tray. Raises UserError."""
    with tray.held:
        if not tray.uploads:
            return PhotoReview([], "", 0, False)
        photos, out = tray.used(crop), tray.left_out(crop)
        verdict = _check_photos(photos, kind, noun)
        tiles = _make_tiles(tray, photos, out, verdict, house.room(page))
        return PhotoReview(
            tiles,
            _summary(verdict, out),
            len(photos.photos) if photos else 0,
            bool(_find_advice(tray, photos, verdict)),
        )


def apply_advice(tray: PhotoUploads, kind: str, noun: str, crop: str) -> None:
    """Turn what lies on its side; leave out what is blurred, badly lit, or nearly the same as another."""
    with tray.held:
        photos = tray.used(crop)
        for number, quarters in _find_advice(tray, photos, _check_photos(photos, kind, noun)).items():
            tray.turn(number, quarters) if quarters else tray.use(number, False)


def _check_photos(photos: PhotoSet | None, kind: str, noun: str) -> Report:
    if photos is None:
        return Report(0)
    return check(photos, kind, noun, _clip_features() if kind != "style" else None)


@functools.cache
def _clip_features() -> ClipFeatures:
    from ....evaluation import Scorer

    return Scorer()


def _find_advice(tray: PhotoUploads, photos: PhotoSet | None, verdict: Report) -> dict[int, int]:
    """{number of a photo: quarters to turn it, 0 to leave it out}."""
    numbers = {snap.name: number for number, snap in enumerate(tray.uploads)}
    found, left = {}, verdict.count
    for name in _bad_photos(verdict):
        if left > _MIN_PHOTOS:
            found[numbers[name]] = 0
            left -= 1
    for each in verdict.findings:
        if each.name == "sideways":
            turns = _find_rotations(photos, each.photos)
            found |= {numbers[name]: turns[name] for name in each.photos if numbers[name] not in found}
    return found


def _bad_photos(verdict: Report) -> list[str]:
    """What is better left out, the worst first: bad photos, and of those that are alike all but the first good one."""
    bad = [name for each in verdict.findings if each.name in _LEAVE_OUT for name in each.photos]
    for each in verdict.findings:
        if each.name == "near-duplicates":
            best = next((name for name in each.photos if name not in bad), each.photos[0])
            bad += [name for name in each.photos if name != best]
    return list(dict.fromkeys(bad))


def _find_rotations(photos: PhotoSet, lying: Sequence[str]) -> dict[str, int]:
    """By how many quarters each photo is turned to lie as the others do."""
    others = [edge_histogram(photo.square()) for photo in photos.photos if photo.name not in lying]
    if len(others) < MIN_PHOTOS - 1:
        return dict.fromkeys(lying, 1)
    return {
        photo.name: max((1, 3), key=lambda turn, p=photo: sum(_rotated_histogram(p, turn) @ other for other in others))
        for photo in photos.photos
        if photo.name in lying
    }


def _rotated_histogram(photo: Photo, quarters: int) -> np.ndarray:
    return edge_histogram(np.rot90(photo.square(), quarters))


def _summary(verdict: Report, out: PhotoSet | None) -> str:
    left = f" {len(out.photos)} left out." if out else ""
    if not verdict.count:
        return f"No photo is used.{left}"
    photos = "1 photo" if verdict.count == 1 else f"{verdict.count} photos"
    if not verdict.findings:
        return f"{photos}: I see nothing to change.{left}"
    lines = [f"• {each.message} {each.effect} {_FIXES.get(each.name, each.hint)}" for each in verdict.findings]
    things = "one thing" if len(lines) == 1 else f"{len(lines)} things"
    return "\n".join([f"{photos}; {things} to look at, or go on as it is:{left}", *lines])


def _make_tiles(tray: PhotoUploads, photos: PhotoSet | None, out: PhotoSet | None, verdict: Report, room: Path) -> list:
    known = {photo.name: photo for each in (photos, out) if each for photo in each.photos}
    place, old = room / f"photos-{secrets.token_hex(4)}", sorted(room.glob("photos-*"))
    tiles = []
    with storage.new_folder(place) as staged:
        for number, snap in enumerate(tray.uploads):
            marks = [_MARKS[each.name] for each in verdict.findings if each.name in _MARKS and snap.name in each.photos]
            if not snap.used:
                marks = ["left out"]
            elif snap.name not in known:
                marks = ["the same as another"]  # once it was turned
            picture = show_crop(known[snap.name]) if snap.name in known else _open_photo(tray.path(number))
            storage.write_bytes(staged / f"{snap.name}.jpg", _jpeg(_add_frame(picture, snap.used, bool(marks))))
            caption = f"{snap.name.removeprefix('photo ')}: {', '.join(marks)}" if marks else snap.name
            tiles.append((str(place / f"{snap.name}.jpg"), caption))
    for folder in old[:-1]:  # the last one may still be on its way to the page
        storage.remove(folder)
    return tiles


def _open_photo(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.thumbnail((240, 240))
        return picture.convert("RGB")


def _add_frame(picture: Image.Image, used: bool, marked: bool) -> Image.Image:
    if not used:
        return Image.blend(picture, Image.new("RGB", picture.size, "white"), _PALE)
    if marked:
        ImageDraw.Draw(picture).rectangle(
            (0, 0, picture.width - 1, picture.height - 1), outline=_FRAME, width=_FRAME_WIDTH
        )
    return picture


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
