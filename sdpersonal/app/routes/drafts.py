"""Answer requests about drafts, the trainings that are prepared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from ..backend import App
from ..backend.train.photo_files import MAX_CAPTION, MAX_UPLOADS, sample_jpeg
from .requests import Body, User

_MAX_FILES = 3 * MAX_UPLOADS + 200  # photos with captions and crops; more photos than allowed are told by their number
_CACHED = {"Cache-Control": "private, max-age=31536000, immutable"}

Id = Annotated[str, Field(max_length=200)]
Caption = Annotated[str, Field(max_length=MAX_CAPTION)]


class NewDraft(Body):
    from_run: Id | None = None


class FormValues(Body):
    values: Annotated[dict[str, Any], Field(max_length=50)]


class NewPhotos(Body):
    uploads: Annotated[list[Annotated[str, Field(max_length=5000)]], Field(max_length=_MAX_FILES)]


class PhotoChange(Body):
    photo: Id
    used: bool | None = None
    quarters: Annotated[int, Field(ge=-3, le=3)] = 0
    caption: Caption | None = None
    remove: bool = False
    crop: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None


class Captions(Body):
    captions: Annotated[dict[Id, Caption], Field(max_length=MAX_UPLOADS)]


class Samples(Body):
    set: Id


def router(app: App) -> APIRouter:
    routes, drafts = APIRouter(prefix="/app/drafts"), app.drafts

    @routes.get("")
    def all_drafts(user: User) -> dict[str, Any]:
        return {"drafts": drafts.all(user)}

    @routes.post("")
    def new_draft(user: User, body: NewDraft | None = None) -> dict[str, Any]:
        return drafts.create(user, body.from_run if body else None)

    @routes.post("/{draft_id}/delete")
    def delete(user: User, draft_id: str) -> dict[str, Any]:
        drafts.delete(user, draft_id)
        return {}

    @routes.post("/{draft_id}/form")
    def set_form(user: User, draft_id: str, body: FormValues) -> dict[str, Any]:
        return drafts.set_form(user, draft_id, body.values)

    @routes.post("/{draft_id}/photos")
    def add_photos(user: User, draft_id: str, body: NewPhotos) -> dict[str, Any]:
        return drafts.add_photos(user, draft_id, body.uploads)

    @routes.post("/{draft_id}/photo")
    def change_photo(user: User, draft_id: str, body: PhotoChange) -> dict[str, Any]:
        crop = {"crop": body.crop} if "crop" in body.model_fields_set else {}
        return drafts.change_photo(
            user, draft_id, body.photo, body.used, body.quarters, body.caption, body.remove, **crop
        )

    @routes.post("/{draft_id}/captions")
    def set_captions(user: User, draft_id: str, body: Captions) -> dict[str, Any]:
        return drafts.set_captions(user, draft_id, body.captions)

    @routes.post("/{draft_id}/advice")
    def apply_advice(user: User, draft_id: str) -> dict[str, Any]:
        return drafts.apply_advice(user, draft_id)

    @routes.post("/{draft_id}/clear")
    def clear(user: User, draft_id: str) -> dict[str, Any]:
        return drafts.clear(user, draft_id)

    @routes.post("/{draft_id}/samples")
    def use_samples(user: User, draft_id: str, body: Samples) -> dict[str, Any]:
        return drafts.use_samples(user, draft_id, body.set)

    @routes.post("/{draft_id}/start")
    def start(user: User, draft_id: str) -> dict[str, Any]:
        return {"run": drafts.start(user, draft_id)}

    @routes.get("/{draft_id}/photos/{photo}.jpg")
    def photo_file(user: User, draft_id: str, photo: str, thumb: Literal["0", "1"] = "0") -> Response:
        return Response(
            drafts.photo_jpeg(user, draft_id, photo, thumb == "1"), media_type="image/jpeg", headers=_CACHED
        )

    @routes.get("/samples/{set_id}.jpg")
    def sample_thumb(set_id: str) -> Response:
        return Response(sample_jpeg(set_id), media_type="image/jpeg", headers=_CACHED)

    return routes
