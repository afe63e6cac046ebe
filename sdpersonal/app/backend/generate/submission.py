"""Plan any job that a page or a program asks for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ....errors import UserError
from ....prompts import MAX_PROMPT
from ..render_job import JobKind, JobPlan
from .gallery import Gallery
from .generate_form import request_fields
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
    that the other kinds begin with; the rest: as their functions take it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: JobKind
    form: Form = Field(default_factory=dict)
    image: ImageId | None = None
    strength: float | None = None
    count: int | None = None
    change: ShortText | None = None
    x: ShortText | None = None
    x_values: ShortText | None = None
    y: ShortText | None = None
    y_values: ShortText | None = None


def plan_job(request: JobRequest, gallery: Gallery, user: str | None) -> JobPlan:
    """Check a request and plan its job. Raises UserError."""
    library, wildcards = gallery.workspace.library, gallery.workspace.wildcards
    if request.kind in ("generate", "endless", "grid"):
        fields = request_fields(request.form, gallery, user)
        check_concepts(fields.get("prompt"), library)
        if request.kind == "generate":
            return generate_job(fields, wildcards)
        if request.kind == "endless":
            return endless_job(fields, wildcards)
        return grid_job(fields, request.x, request.x_values, request.y, request.y_values)
    if request.image is None:
        raise UserError("No image is selected.", "Click one first.")
    image = gallery.find(user, request.image)
    if image.kind == "grid":
        raise UserError("A grid is not an image that can be generated again.", "Choose one of its images.")
    if request.kind == "variations":
        return variation_job(library, image, request.strength, request.count)
    if request.kind == "change":
        return change_job(library, image, request.change)
    if request.kind == "hires":
        return hires_job(library, image, request.strength)
    return redo_job(library, image, request.count)
