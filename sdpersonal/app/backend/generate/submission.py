"""Plan any job that a page or a program asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ....errors import UserError
from ....prompts import MAX_PROMPT
from ..render_job import JobKind, JobPlan
from .gallery import Gallery
from .generate_form import FRESH_SEEDS, keep_uploads, read_seed, request_fields
from .image_jobs import change_job, hires_job, redo_job, variation_job
from .jobs import endless_job, generate_job, grid_job
from .prompt import check_concepts

_MAX_LENGTH = MAX_PROMPT * 2  # characters: `GenerateRequest` says what is too long
ShortText = Annotated[str, Field(max_length=_MAX_LENGTH)]
ImageId = Annotated[str, Field(max_length=80)]
FormValue = dict[str, Any] | ShortText | bool | int | float | None
Form = Annotated[dict[Annotated[str, Field(max_length=40)], FormValue], Field(max_length=60)]


class JobRequest(BaseModel):
    """What is asked for. form: for generate, endless and grid, as `request_fields` takes it; image: id of the image
    that the other kinds begin with; seed: of the first image of "redo" with a count, by default a new one; the rest: as
    their functions take it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: JobKind
    form: Form = Field(default_factory=dict)
    image: ImageId | None = None
    strength: float | None = None
    count: int | None = None
    seed: Annotated[int, Field(ge=0, lt=FRESH_SEEDS)] | None = None
    change: ShortText | None = None
    x: ShortText | None = None
    x_values: ShortText | None = None
    y: ShortText | None = None
    y_values: ShortText | None = None


def plan_job(request: JobRequest, gallery: Gallery, user: str | None, skip: int = 0) -> JobPlan:
    """Check a request and plan its job. Raises UserError. skip: so many of its images were saved before the app ended.

    The plan's own request makes the same images at another time, without the uploads.
    """
    request = _repeatable(request, gallery, user)
    if request.kind in ("generate", "endless", "grid"):
        plan = _plan_form_job(request, gallery, user, skip)
    else:
        plan = _plan_image_job(request, gallery, user, skip)
    content = request.model_dump(exclude_defaults=True)
    return replace(plan, request=content if _is_json(content) else None)


def _repeatable(request: JobRequest, gallery: Gallery, user: str | None) -> JobRequest:
    """Return a request for the same images at any time: with a seed, and saved images in the place of uploads."""
    if request.kind in ("generate", "endless", "grid"):
        return request.model_copy(update={"form": keep_uploads(request.form, gallery, user)})
    return request.model_copy(update={"seed": read_seed(request.seed)}) if request.kind == "redo" else request


def _plan_form_job(request: JobRequest, gallery: Gallery, user: str | None, skip: int) -> JobPlan:
    wildcards = gallery.workspace.wildcards
    fields = request_fields(request.form, gallery, user)
    check_concepts(fields.get("prompt"), gallery.workspace.library)
    if request.kind == "generate":
        return generate_job(fields, wildcards, skip)
    if request.kind == "endless":
        return endless_job(fields, wildcards)
    return grid_job(fields, request.x, request.x_values, request.y, request.y_values)


def _plan_image_job(request: JobRequest, gallery: Gallery, user: str | None, skip: int) -> JobPlan:
    library = gallery.workspace.library
    if request.image is None:
        raise UserError("No image is selected.", "Click one first.")
    image = gallery.find(user, request.image)
    if image.kind == "grid":
        raise UserError("A grid is not an image that can be generated again.", "Choose one of its images.")
    if request.kind == "variations":
        return variation_job(library, image, request.strength, request.count, skip)
    if request.kind == "change":
        return change_job(library, image, request.change, skip)
    if request.kind == "hires":
        return hires_job(library, image, request.strength, skip=skip)
    return redo_job(library, image, request.count, request.seed, skip)


def _is_json(content: Mapping[str, Any]) -> bool:
    """Return whether it can be written to a file: no NaN, and no half of a surrogate pair."""
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return False
    return True
