"""Check the photos of a draft as the trainer will see them, and word what was noticed for the page."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ....config import ConceptKind, CropMode
from ....config.base import BaseKind
from ....errors import UserError, printable
from ....photos.checks import ClipFeatures, ExaminedPhoto, Finding, Report, check_examined
from ....photos.checks.across_photos import MIN_PHOTOS, turned_edge_histograms
from ....photos.crops import OwnCrop
from ....photos.decode import UnusablePhoto
from ....photos.loading import Photo, hash_pixels, load_photo
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
_MAX_SEEN = 600  # entries of remembered photos, two each at most: about 0.4 MB a photo


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
        findings = [replace(f, photos=tuple(name for name in f.photos if name not in names)) for f in self.findings]
        return PhotoReview(
            self.count,
            tuple(finding for finding in findings if finding.photos),
            {name: marks for name, marks in self.marks.items() if name not in names},
            {name: quarters for name, quarters in self.advice.items() if name not in names},
            {name: crop for name, crop in self.crops.items() if name not in names},
        )


@dataclass(frozen=True, eq=False)
class SeenPhoto:
    """A photo of a draft as the trainer sees it. pixels_sha256: equal for equal photos; crop: its square."""

    examined: ExaminedPhoto
    pixels_sha256: str
    crop: OwnCrop


class SeenPhotos:
    """Remembers photos with all that was measured of them, the latest ones."""

    def __init__(self) -> None:
        self._photos: OrderedDict[Hashable, SeenPhoto] = OrderedDict()

    def get(self, stored: StoredPhoto, options: ReviewOptions) -> SeenPhoto:
        """Return a stored photo as the trainer sees it. Raises UnusablePhoto or UserError if its file is
        gone."""
        key = stored.path, stored.version, options.side, stored.crop or options.crop
        if key in self._photos:
            seen = self._photos[key]
        else:
            loaded = _load(stored, options)
            square = stored.path, stored.version, options.side, loaded.crop  # the same one, if the photo is square
            seen = self._photos[square] = self._photos.get(square, loaded)
            self._photos[key] = seen
        self._photos.move_to_end(key)
        while len(self._photos) > _MAX_SEEN:
            self._photos.popitem(last=False)
        seen.examined.captioned = bool(stored.captions)
        return seen


def _load(stored: StoredPhoto, options: ReviewOptions) -> SeenPhoto:
    def load() -> Photo:
        photo = load_photo(stored.path, options.side, options.crop)
        if photo.own_crop != stored.crop:
            raise UnusablePhoto("was cropped meanwhile")
        return photo

    photo = load()
    examined = ExaminedPhoto(stored.name, photo.original_size, False, lambda: load().square())
    examined.hold(photo.square())
    return SeenPhoto(examined, hash_pixels(photo.pixels), _crop_of(photo))


def review_photos(stored: Sequence[StoredPhoto], options: ReviewOptions, seen_before: SeenPhotos) -> PhotoReview:
    """Check photos as the trainer will see them. seen_before: remembers what was measured of them."""
    seen: dict[str, SeenPhoto] = {}
    for photo in stored:
        with suppress(UnusablePhoto, UserError):  # it was removed meanwhile
            seen[photo.name] = seen_before.get(photo, options)
    used = {photo.name: seen[photo.name] for photo in stored if photo.used and photo.name in seen}
    first: dict[str, ExaminedPhoto] = {}  # the trainer uses one of those that are identical after a rotation
    for used_photo in used.values():
        first.setdefault(used_photo.pixels_sha256, used_photo.examined)
    photos = list(first.values())
    try:
        report = _check_photos(photos, options)
        advice = _find_advice(photos, report)
    finally:
        for remembered in seen.values():
            remembered.examined.release()
    marks = {name: [] if used_photo.examined in photos else [_SAME_MARK] for name, used_photo in used.items()}
    for finding in report.findings:
        for name in finding.photos if finding.name in _MARKS else ():
            marks[name].append(_MARKS[finding.name])
    return PhotoReview(
        len(photos),
        tuple(_for_page(finding, options) for finding in report.findings),
        {name: tuple(texts) for name, texts in marks.items()},
        advice,
        {name: remembered.crop for name, remembered in seen.items()},
    )


def _crop_of(photo: Photo) -> OwnCrop:
    if photo.own_crop:
        return photo.own_crop
    height, width = photo.pixels.shape[:2]
    return OwnCrop(photo.crop[0] / width, photo.crop[1] / height, 1.0)


def _check_photos(photos: Sequence[ExaminedPhoto], options: ReviewOptions) -> Report:
    if not photos:
        return Report(0)
    clip = _clip_features() if options.kind != "style" else None
    return check_examined(photos, options.kind, options.noun, clip, options.base_kind)


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


def _find_advice(photos: Sequence[ExaminedPhoto], report: Report) -> dict[str, int]:
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


def _find_rotations(photos: Sequence[ExaminedPhoto], sideways: Sequence[str]) -> dict[str, int]:
    """Return by how many quarters to rotate each photo so that it lies as the others do: 1 or 3."""
    upright = [photo.measure(turned_edge_histograms)[0] for photo in photos if photo.name not in sideways]
    if len(upright) < MIN_PHOTOS - 1:
        return dict.fromkeys(sideways, 1)
    rotations = {}
    for photo in photos:
        if photo.name in sideways:
            _, left, right = photo.measure(turned_edge_histograms)
            rotations[photo.name] = (
                1 if sum(left @ other for other in upright) >= sum(right @ other for other in upright) else 3
            )
    return rotations
