"""Return a draft as the page reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ....concepts.library import Library
from ....models.model_info import ModelInfo
from ....photos.crops import OwnCrop
from ..error_text import describe_error
from .concept_name import make_name
from .photo_files import SAMPLE_SETS
from .photo_review import PhotoReview
from .train_form import Plan, TrainForm, make_plan
from .uploads import StoredPhoto


def draft_view(
    draft_id: str,
    created: float,
    form: TrainForm,
    photos: Sequence[StoredPhoto],
    review: tuple[PhotoReview, bool],
    base: ModelInfo,
    library: Library,
    costs: Mapping[str, Any],
    owner: str,
) -> dict[str, Any]:
    """Return a draft for JSON. review: the newest one, and whether another one is under way; owner: of the concept, if
    the form has none."""
    name = make_name(form.owner, form.name, library, owner)
    plan = _safe_plan(form, sum(photo.used for photo in photos), base, library, costs, owner)
    return {
        "id": draft_id,
        "created": created,
        "form": form.model_dump(mode="json"),
        "name": {"token": str(name.token) if name.token else None, "note": name.note, "problem": name.problem},
        "photos": [_photo_view(draft_id, photo, review[0]) for photo in photos],
        "review": _review_view(*review, sum(photo.used for photo in photos)),
        "plan": {"lines": list(plan.lines), "problem": plan.problem, "field": plan.field},
        "sample_sets": [
            {"id": s.id, "title": s.title, "kind": s.kind, "thumb": f"/app/drafts/samples/{s.id}.jpg"}
            for s in SAMPLE_SETS
        ],
    }


def _photo_view(draft_id: str, photo: StoredPhoto, review: PhotoReview) -> dict[str, Any]:
    width, height = photo.size
    url = f"/app/drafts/{draft_id}/photos/{quote(photo.name)}.jpg?v={photo.version}"
    return {
        "id": photo.name,
        "name": photo.name,
        "url": url,
        "thumb": f"{url}&thumb=1",
        "width": width,
        "height": height,
        "used": photo.used,
        "caption": photo.captions,
        "crop": list(photo.crop or review.crops.get(photo.name) or _center(width, height)),
        "own_crop": photo.crop is not None,
        "marks": list(review.marks.get(photo.name, ())),
    }


def _center(width: int, height: int) -> OwnCrop:
    short = min(width, height)
    return OwnCrop((width - short) / 2 / width, (height - short) / 2 / height, 1.0)


def _review_view(review: PhotoReview, checking: bool, used: int) -> dict[str, Any]:
    findings = [
        {
            "name": finding.name,
            "message": finding.message,
            "effect": finding.effect,
            "fix": finding.hint,
            "photos": list(finding.photos),
        }
        for finding in review.findings
    ]
    return {
        "count": used if checking else review.count,
        "findings": findings,
        "has_advice": bool(review.advice),
        "checking": checking,
    }


def _safe_plan(
    form: TrainForm, photos: int, base: ModelInfo, library: Library, costs: Mapping[str, Any], owner: str
) -> Plan:
    try:
        return make_plan(form, photos, base, library, costs, owner)
    except Exception as error:  # what cannot be estimated keeps nobody from seeing the photos
        return Plan(problem=describe_error(error))
