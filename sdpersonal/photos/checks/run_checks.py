"""Run all checks of a set of photos, in the order in which a person would look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from ...config import ConceptKind
from ...config.base import BaseKind
from ...errors import printable
from ..loading import FEW_PHOTOS, PhotoSet
from .across_photos import are_photographs, change_of_light, shared_background, sideways_photos
from .clip_checks import ClipFeatures, two_subjects, wrong_class
from .duplicates import near_duplicates
from .each_photo import BLUR_THRESHOLD, exposure, sharpness
from .examined import ExaminedPhoto
from .findings import Finding, FindingName, Report, make_finding
from .subject_groups import subject_groups

T = TypeVar("T")
_SMALL = 0.8  # of the training resolution: upscaling by a quarter is hardly visible
_FEW_BACKGROUNDS = 3  # photos needed to report one background


def check(
    photos: PhotoSet,
    kind: ConceptKind,
    class_noun: str = "",
    clip: ClipFeatures | None = None,
    base_kind: BaseKind | None = None,
) -> Report:
    """Check for what may go wrong in training on these photos.

    The photos are checked as they are trained on: scaled and cropped. A style may be dark, soft and of many things, so
    it is not checked for these. Takes about 40 ms a photo and, with n photos, 5 ms times n squared / 2.

    Args:
        clip: the built-in CLIP, to detect several subjects or a wrong class; without it these checks are skipped.
        base_kind: the model to train.
    """
    return check_examined([ExaminedPhoto.of(photo) for photo in photos.photos], kind, class_noun, clip, base_kind)


def check_examined(
    photos: Sequence[ExaminedPhoto],
    kind: ConceptKind,
    class_noun: str = "",
    clip: ClipFeatures | None = None,
    base_kind: BaseKind | None = None,
) -> Report:
    """Do as `check`, repeating nothing that was measured of a photo before. photos: one or more."""
    names = [photo.name for photo in photos]
    groups = near_duplicates(photos)
    findings = [*_check_size(photos)]
    changes = [photo.measure(change_of_light) for photo in photos] if base_kind == "tiny" and kind != "style" else []
    if changes and are_photographs(changes):
        findings.append(make_finding("photographs", names, "The built-in model has seen drawings only."))
    findings += [
        make_finding("near-duplicates", _select(names, group), "{} are nearly the same photo.") for group in groups
    ]
    if kind == "style":
        findings += _check_style(photos)
    else:
        findings += _check_each(photos)
        # Copies of one photo say nothing about the set: only one of each group is checked for what all share.
        copies = {i for group in groups for i in group[1:]}
        different = [i for i in range(len(names)) if i not in copies]
        findings += _check_set(_select(photos, different), kind, class_noun, clip)
    return Report(len(names), tuple(findings))


def _check_size(photos: Sequence[ExaminedPhoto]) -> Iterator[Finding]:
    names, size = [photo.name for photo in photos], photos[0].measure(len)
    if len(names) < FEW_PHOTOS:
        yield make_finding(
            "few", names, f"{len(names)} photos are few." if len(names) > 1 else "One photo is not enough."
        )
    small = [photo for photo in photos if 0 < min(photo.original_size) < _SMALL * size]
    if small:
        smallest = min(min(photo.original_size) for photo in small)
        suffix = "" if len(small) == 1 else " or more"
        problem = f"{{}} must be enlarged to {size} pixels, from {smallest}{suffix}."
        yield make_finding("small", [photo.name for photo in small], problem)


def _check_style(photos: Sequence[ExaminedPhoto]) -> Iterator[Finding]:
    bare = [photo.name for photo in photos if not photo.captioned]
    if bare:
        yield make_finding("no-captions", bare, "Nothing says what is in {}.")


def _check_each(photos: Sequence[ExaminedPhoto]) -> Iterator[Finding]:
    names, lights = [photo.name for photo in photos], [photo.measure(exposure) for photo in photos]
    soft = [
        photo.name
        for photo, light in zip(photos, lights, strict=True)
        if light is None and (measured := photo.measure(sharpness)) is not None and measured < BLUR_THRESHOLD
    ]
    if soft:
        yield make_finding("blurred", soft, "{} is blurred." if len(soft) == 1 else "{} are blurred.")
    exposures: dict[FindingName, str] = {
        "dark": "too dark",
        "burnt-out": "burnt out",
        "washed-out": "without contrast",
    }
    for problem, words in exposures.items():
        affected = [name for name, light in zip(names, lights, strict=True) if light == problem]
        if affected:
            yield make_finding(problem, affected, f"{{}} {'is' if len(affected) == 1 else 'are'} {words}.")


def _check_set(
    photos: Sequence[ExaminedPhoto], kind: ConceptKind, class_noun: str, clip: ClipFeatures | None
) -> Iterator[Finding]:
    names = [photo.name for photo in photos]
    lying = sideways_photos(photos)
    if lying:
        problem = "{} lies on its side." if len(lying) == 1 else "{} lie on their side."
        yield make_finding("sideways", _select(names, lying), problem)
    if len(photos) >= _FEW_BACKGROUNDS and (same := shared_background(photos)):
        yield make_finding("one-background", _select(names, same), "{} have the same background.")
    if clip is None:
        return
    if len(groups := subject_groups(photos, clip)) > 1:
        strange = sorted(i for group in groups[1:] for i in group)
        yield make_finding("two-subjects", _select(names, strange), _describe_groups(groups))
    elif others := two_subjects(photos, clip):
        yield make_finding("two-subjects", _select(names, others), _describe_groups([(), others]))
    elif kind == "object" and wrong_class(photos, class_noun, clip):
        yield make_finding("wrong-class", names, f"Nothing in these photos looks like --class {printable(class_noun)}.")


def _describe_groups(groups: Sequence[Sequence[int]]) -> str:
    """Return the problem of a set with several subjects, largest group first."""
    if len(groups[0]) == 1:
        return "No two of these photos seem to show the same thing."
    if len(groups) == 2:
        return f"{{}} {'seems' if len(groups[1]) == 1 else 'seem'} to show something else than the rest."
    return f"These photos seem to show {len(groups)} different things: {{}} are not what most of them show."


def _select(items: Sequence[T], indices: Sequence[int]) -> list[T]:
    return [items[i] for i in indices]
