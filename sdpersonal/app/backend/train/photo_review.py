"""Check the photos of a draft as the trainer will see them, and word what was noticed for the page."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np

from ....config import ConceptKind, CropMode
from ....config.base import BaseKind
from ....errors import printable
from ....photos.checks import ClipFeatures, Finding, Report, check
from ....photos.checks.across_photos import MIN_PHOTOS, edge_histogram
from ....photos.crops import OwnCrop
from ....photos.decode import UnusablePhoto
from ....photos.loading import Photo, PhotoSet, hash_pixels, load_photo
from .uploads import StoredPhoto

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
_SAME_MARK = "the same as another"
_FIXES = {  # hints that differ from the command line's, since the page has its own way
    "small": "Take larger photos if you have some.",
    "near-duplicates": "Leave out all but the best; take others from another side or in another place.",
    "blurred": "Leave it out, or take it again with more light.",
    "sideways": "Rotate it, or leave it if it was meant so.",
    "one-background": "Take some elsewhere, or name the background: write '{} on a white wall' as its caption.",
    "two-subjects": "Make two concepts: leave one of the two out. Ignore this if it is the same one.",
    "wrong-class": "Check the class noun: the most ordinary word is best.",
    "no-captions": "Say what is in each: write 'a house in the style of {}' as its caption.",
    "photographs": "For a likeness, train on Stable Diffusion: choose it on the page Models.",
}
_LEAVE_OUT = ("blurred", "dark", "burnt-out", "washed-out")
_MIN_PHOTOS = 3


@dataclass(frozen=True)
class ReviewOptions:
    """What a review depends on, beside the photos. side: training resolution in pixels; base_kind: of the model to
    train."""

    kind: ConceptKind
    noun: str
    crop: CropMode
    side: int
    base_kind: BaseKind


@dataclass(frozen=True)
class PhotoReview:
    """Review of a draft's photos.

    count: photos to train on; findings: worded for the page; marks: of each photo; advice: {name: quarters to rotate
    it, 0 to leave it out}; crops: the square of each photo that is trained on.
    """

    count: int = 0
    findings: tuple[Finding, ...] = ()
    marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    advice: Mapping[str, int] = field(default_factory=dict)
    crops: Mapping[str, OwnCrop] = field(default_factory=dict)

    def without(self, names: Set[object]) -> PhotoReview:
        """Return what still holds of the review when these photos have changed or are left out."""
        kept = [replace(f, photos=tuple(name for name in f.photos if name not in names)) for f in self.findings]
        return PhotoReview(
            self.count,
            tuple(finding for finding in kept if finding.photos),
            {name: marks for name, marks in self.marks.items() if name not in names},
            {name: quarters for name, quarters in self.advice.items() if name not in names},
            {name: crop for name, crop in self.crops.items() if name not in names},
        )


def review_photos(stored: Sequence[StoredPhoto], options: ReviewOptions) -> PhotoReview:
    """Check photos as the trainer will see them."""
    loaded: dict[str, Photo] = {}
    for photo in stored:
        try:
            loaded[photo.name] = load_photo(photo.path, options.side, options.crop, options.kind)
        except UnusablePhoto:  # it was removed meanwhile
            continue
    used = [photo for photo in stored if photo.used and photo.name in loaded]
    photos, same = _without_duplicates([loaded[photo.name] for photo in used])
    report = _check_photos(PhotoSet(tuple(photos)), options)
    marks = {photo.name: [_SAME_MARK] if photo.name in same else [] for photo in used}
    for finding in report.findings:
        for name in finding.photos if finding.name in _MARKS else ():
            marks[name].append(_MARKS[finding.name])
    return PhotoReview(
        len(photos),
        tuple(_for_page(finding, options) for finding in report.findings),
        {name: tuple(texts) for name, texts in marks.items()},
        _find_advice(photos, report),
        {name: _crop_of(photo) for name, photo in loaded.items()},
    )


def _without_duplicates(photos: Sequence[Photo]) -> tuple[list[Photo], set[str]]:
    """Return the photos that the trainer uses, and the names of the others, which are identical after a rotation."""
    first: dict[str, Photo] = {}
    for photo in photos:
        first.setdefault(hash_pixels(photo.pixels), photo)
    used = list(first.values())
    return used, {photo.name for photo in photos} - {photo.name for photo in used}


def _crop_of(photo: Photo) -> OwnCrop:
    if photo.own_crop:
        return photo.own_crop
    height, width = photo.pixels.shape[:2]
    return OwnCrop(photo.crop[0] / width, photo.crop[1] / height, 1.0)


def _check_photos(photos: PhotoSet, options: ReviewOptions) -> Report:
    if not photos.photos:
        return Report(0)
    clip = _clip_features() if options.kind != "style" else None
    return check(photos, options.kind, options.noun, clip, options.base_kind)


@functools.cache
def _clip_features() -> ClipFeatures:
    from ....evaluation import Scorer

    return Scorer()


def _for_page(finding: Finding, options: ReviewOptions) -> Finding:
    """Return the finding with what to do on the page, instead of on a command line."""
    message = finding.message
    if finding.name == "wrong-class":
        message = f"Nothing in these photos looks like: {printable(options.noun)}."
    return replace(finding, message=message, hint=_FIXES.get(finding.name, finding.hint))


# --- advice -----------------------------------------------------------------------------------------------------------


def _find_advice(photos: Sequence[Photo], report: Report) -> dict[str, int]:
    """Return {name of a photo: quarters to rotate it, 0 to leave it out}."""
    advice: dict[str, int] = {}
    remaining = report.count
    for name in _bad_photos(report):
        if remaining > _MIN_PHOTOS:
            advice[name] = 0
            remaining -= 1
    for finding in report.findings:
        if finding.name == "sideways":
            turns = _find_rotations(photos, finding.photos)
            advice |= {name: turns[name] for name in finding.photos if name not in advice}
    return advice


def _bad_photos(report: Report) -> list[str]:
    """Name the photos to leave out, worst first: bad ones, and all near-duplicates but the first good one."""
    bad = [name for finding in report.findings if finding.name in _LEAVE_OUT for name in finding.photos]
    for finding in report.findings:
        if finding.name == "near-duplicates":
            best = next((name for name in finding.photos if name not in bad), finding.photos[0])
            bad += [name for name in finding.photos if name != best]
    return list(dict.fromkeys(bad))


def _find_rotations(photos: Sequence[Photo], sideways: Sequence[str]) -> dict[str, int]:
    """Return by how many quarters to rotate each photo so that it lies as the others do."""
    upright = [edge_histogram(photo.square()) for photo in photos if photo.name not in sideways]
    if len(upright) < MIN_PHOTOS - 1:
        return dict.fromkeys(sideways, 1)
    return {photo.name: _best_rotation(photo, upright) for photo in photos if photo.name in sideways}


def _best_rotation(photo: Photo, upright: Sequence[np.ndarray]) -> int:
    """Return 1 or 3 quarters, whichever makes the photo's edges more like those of the upright photos."""

    def similarity(quarters: int) -> float:
        rotated = edge_histogram(np.rot90(photo.square(), quarters))
        return float(sum(rotated @ other for other in upright))

    return max((1, 3), key=similarity)
