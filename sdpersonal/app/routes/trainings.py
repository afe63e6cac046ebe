"""Answer requests about a user's trainings: the list, the details of each, its images, and commands to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from ... import storage
from ...errors import UserError
from ...training.run_dir import REPORT_FILE
from ..backend import App
from ..backend.train.run_commands import keep_step, run_command, set_prompts
from ..backend.train.run_images import photo_thumbnail, read_image
from ..backend.train.run_view import run_details, run_summaries
from .requests import DOCUMENT_POLICY, Body, User

_CACHED = {"Cache-Control": "private, max-age=31536000, immutable"}  # addresses change with the content
_MAX_REPORT_BYTES = 64 << 20
Run = Annotated[str, Field(max_length=200)]


class CommandBody(Body):
    command: Literal["sample", "keep", "pause", "cancel", "resume", "discard", "dismiss"]


class KeepBody(Body):
    step: Annotated[int, Field(ge=1, le=999_999_999)]


class PromptsBody(Body):
    prompts: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=50)]


class MoveBody(Body):
    id: Run
    before: Run | None = None


def router(app: App) -> APIRouter:
    routes = APIRouter()
    service = app.trainings

    def trainings_of(user: str | None) -> dict[str, Any]:
        return {"trainings": run_summaries(service.runs(user), service)}

    def changed(user: str | None, message: str = "") -> dict[str, Any]:
        app.training_watcher.wake()
        app.training_watcher.publish(user)
        return trainings_of(user) | {"message": message}

    @routes.get("/app/trainings")
    def trainings(user: User) -> dict[str, Any]:
        """Return the running training, those that wait in their order, and the others, newest first."""
        return trainings_of(user)

    @routes.post("/app/trainings/move")
    def move(body: MoveBody, user: User) -> dict[str, Any]:
        """Move a waiting training before another one, or behind all."""
        service.move(user, body.id, body.before)
        return changed(user)

    @routes.get("/app/trainings/{run}")
    def training(run: Run, user: User) -> dict[str, Any]:
        return run_details(service.find(user, run), service)

    @routes.post("/app/trainings/{run}/command")
    def command(run: Run, body: CommandBody, user: User) -> dict[str, Any]:
        return changed(user, run_command(service, user, run, body.command))

    @routes.post("/app/trainings/{run}/keep")
    def keep(run: Run, body: KeepBody, user: User) -> dict[str, Any]:
        message = keep_step(service, user, run, body.step)
        app.events.publish_to_all("library", {})
        return changed(user, message)

    @routes.post("/app/trainings/{run}/prompts")
    def prompts(run: Run, body: PromptsBody, user: User) -> dict[str, Any]:
        set_prompts(service, user, run, body.prompts)
        return changed(user)

    @routes.get("/app/trainings/{run}/images/{place}/{number}.png")
    def image(run: Run, place: Annotated[str, Field(max_length=20)], number: int, user: User) -> Response:
        return Response(read_image(service.find(user, run), place, number), media_type="image/png", headers=_CACHED)

    @routes.get("/app/trainings/{run}/photos/{number}.jpg")
    def photo(run: Run, number: int, user: User) -> Response:
        return Response(photo_thumbnail(service.find(user, run), number), media_type="image/jpeg", headers=_CACHED)

    @routes.get("/app/trainings/{run}/report")
    def report(run: Run, user: User) -> Response:
        status = service.find(user, run)
        if status.state != "done":
            raise UserError("This training has no report yet.")
        data = storage.read_bytes(status.folder / REPORT_FILE, _MAX_REPORT_BYTES)
        headers = {"Content-Security-Policy": DOCUMENT_POLICY, "Cache-Control": "no-cache"}
        return Response(data, media_type="text/html; charset=utf-8", headers=headers)

    return routes
