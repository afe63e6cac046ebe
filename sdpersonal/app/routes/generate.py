"""Answer requests of the Generate tab: prompts, jobs, settings of images, and presets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from ... import storage
from ...errors import UserError
from ..backend import App
from ..backend.generate import presets
from ..backend.generate.gallery import Gallery
from ..backend.generate.generate_form import form_values, save_init_image
from ..backend.generate.image_settings import MAX_TEXT, ImageSettings, read_pasted_settings, read_settings
from ..backend.generate.init_images import InitImages
from ..backend.generate.places import change_region
from ..backend.generate.prompt import change_strength, check_prompt, fill_preset
from ..backend.generate.submission import Form, ImageId, JobRequest, ShortText, plan_job
from .requests import Body, User

_MAX_INIT = 1 << 28  # bytes of a saved init image
JobId = Annotated[str, Field(max_length=40)]


class PromptBody(Body):
    prompt: ShortText


class EditBody(PromptBody):
    token: ShortText
    strength: float | None = None
    region: ShortText | None = None
    mention: int | None = None


class PresetPromptBody(PromptBody):
    id: JobId


class MoveBody(Body):
    id: JobId
    before: JobId | None = None


class InitBody(Body):
    upload: ShortText | None = None
    image: ImageId | None = None
    saved: JobId | None = None


class SettingsBody(Body):
    upload: ShortText | None = None
    text: Annotated[str, Field(max_length=MAX_TEXT)] | None = None


class PresetBody(Body):
    name: Annotated[str, Field(max_length=presets.MAX_NAME)]
    kind: presets.PresetKind
    values: Form


class PresetIdBody(Body):
    id: JobId


def settings_answer(settings: ImageSettings) -> dict[str, Any]:
    """Return settings as the page reads them."""
    return {"fields": form_values(settings.fields), "notes": list(settings.notes), "same": settings.same}


def router(app: App) -> APIRouter:
    routes = APIRouter()
    _add_prompts(routes, app)
    _add_jobs(routes, app)
    _add_settings(routes, app, app.gallery)
    _add_presets(routes, app)
    return routes


def _add_prompts(routes: APIRouter, app: App) -> None:
    library = app.workspace.library

    @routes.post("/app/prompt/check")
    def check(body: PromptBody, user: User) -> dict[str, Any]:
        """Say what is wrong with a prompt, and which concepts it names."""
        return asdict(check_prompt(body.prompt, app.workspace, app.generation.base.kind))

    @routes.post("/app/prompt/edit")
    def edit(body: EditBody, user: User) -> dict[str, Any]:
        """Change the strength or the region of a concept in a prompt; the region also of one of its mentions."""
        prompt = body.prompt
        if body.strength is not None:
            prompt = change_strength(prompt, body.token, body.strength)
        if body.region is not None:
            prompt = change_region(prompt, body.token, body.region, body.mention)
        return {"prompt": prompt}

    @routes.post("/app/prompt/preset")
    def preset(body: PresetPromptBody, user: User) -> dict[str, Any]:
        """Fill one of the prompts on offer with a fitting concept."""
        return {"prompt": fill_preset(body.id, body.prompt, library, app.generation.base.kind)}


def _add_jobs(routes: APIRouter, app: App) -> None:
    @routes.post("/app/jobs")
    def submit(body: JobRequest, user: User) -> dict[str, Any]:
        """Put a job at the end of the user's line."""
        return app.jobs.submit(user, plan_job(body, app.gallery, user)).view()

    @routes.get("/app/jobs")
    def jobs(user: User) -> dict[str, Any]:
        return {"jobs": app.jobs.views(user)}

    @routes.post("/app/jobs/move")
    def move(body: MoveBody, user: User) -> dict[str, Any]:
        app.jobs.move(user, body.id, body.before)
        return {"jobs": app.jobs.views(user)}

    @routes.post("/app/jobs/stop")
    def stop(user: User) -> dict[str, Any]:
        app.jobs.stop(user)
        return {"jobs": app.jobs.views(user)}

    @routes.post("/app/jobs/{job_id}/cancel")
    def cancel(job_id: str, user: User) -> dict[str, Any]:
        app.jobs.cancel(user, job_id)
        return {"jobs": app.jobs.views(user)}


def _add_settings(routes: APIRouter, app: App, gallery: Gallery) -> None:
    @routes.post("/app/settings/read")
    def read(body: SettingsBody, user: User) -> dict[str, Any]:
        """Read the settings of an uploaded image or of a pasted text."""
        if body.text is not None:
            return settings_answer(read_pasted_settings(body.text))
        path = app.workspace.uploaded_file(body.upload)
        try:
            return settings_answer(read_settings(path))
        finally:
            app.workspace.discard_upload(path)

    @routes.post("/app/init-images")
    def save_init(body: InitBody, user: User) -> dict[str, Any]:
        """Save an init image, so that it outlives its upload and a restart of the app."""
        return save_init_image(body.model_dump(exclude_none=True), gallery, user)

    @routes.get("/app/init-images/{name}.png")
    def init_image(name: str, user: User) -> Response:
        try:
            data = storage.read_bytes(InitImages(app.workspace, user).path(name), _MAX_INIT)
        except UserError as error:
            return Response(error.message, 404, media_type="text/plain")
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}
        return Response(data, media_type="image/png", headers=headers)


def _add_presets(routes: APIRouter, app: App) -> None:
    workspace = app.workspace

    @routes.get("/app/presets")
    def own_presets(user: User) -> dict[str, Any]:
        return {"presets": presets.list_presets(workspace, user)}

    @routes.post("/app/presets")
    def add(body: PresetBody, user: User) -> dict[str, Any]:
        presets.add_preset(workspace, user, body.name, body.kind, body.values)
        return own_presets(user)

    @routes.post("/app/presets/delete")
    def delete(body: PresetIdBody, user: User) -> dict[str, Any]:
        presets.delete_preset(workspace, user, body.id)
        return own_presets(user)
