"""Answer requests about saved images: their list, their files, and changes of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from ...errors import UserError
from ..backend import App
from ..backend.generate.gallery import MAX_IDS, MAX_PAGE, MAX_SEARCH
from ..backend.generate.image_jobs import read_image
from ..backend.generate.image_settings import format_facts, has_areas, recipe_facts, settings_of
from .generate import ImageId, settings_answer
from .requests import DOCUMENT_POLICY, Body, User

_IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
Ids = Annotated[list[ImageId], Field(min_length=1, max_length=MAX_IDS)]


class IdsBody(Body):
    ids: Ids


class FavouriteBody(IdsBody):
    on: bool


class RestoreBody(Body):
    undo: Annotated[str, Field(max_length=60)]


class ZipBody(IdsBody):
    recipes: bool = True


def router(app: App) -> APIRouter:
    routes = APIRouter()
    _add_gallery(routes, app)
    _add_changes(routes, app)
    _add_files(routes, app)
    return routes


def _add_gallery(routes: APIRouter, app: App) -> None:
    @routes.get("/app/gallery")
    def gallery(
        user: User,
        search: Annotated[str, Query(max_length=MAX_SEARCH)] = "",
        favourites: bool = False,
        start: Annotated[str | None, Query(alias="from", max_length=80)] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    ) -> dict[str, Any]:
        """List images, newest first."""
        page = app.gallery.page(user, search, favourites, start or None, limit)
        return {"images": page.images, "total": page.total, "next": page.next_id}

    @routes.get("/app/gallery/image")
    def image(user: User, id: Annotated[str, Query(max_length=80)]) -> dict[str, Any]:
        """Return all that is known about one image."""
        recipe = None
        with suppress(UserError):  # an image without a recipe, as a grid
            recipe = read_image(app.gallery.find(user, id))
        settings = settings_answer(settings_of(recipe)) if recipe else {"fields": {}, "notes": [], "same": False}
        return {
            "image": app.gallery.entry(user, id),
            "facts": [list(fact) for fact in recipe_facts(recipe)] if recipe else [],
            "settings": settings["fields"],
            "notes": settings["notes"],
            "same": settings["same"],
            "has_areas": has_areas(recipe),
            "recipe_text": format_facts(recipe) if recipe else "",
        }


def _add_changes(routes: APIRouter, app: App) -> None:
    def changed(user: str | None) -> None:
        app.events.publish(user, "gallery", {})

    @routes.post("/app/gallery/favourite")
    def favourite(body: FavouriteBody, user: User) -> dict[str, Any]:
        ids = app.gallery.set_favourite(user, body.ids, body.on)
        app.jobs.update_images(user, ids, body.on)
        changed(user)
        return {"ids": ids}

    @routes.post("/app/gallery/delete")
    def delete(body: IdsBody, user: User) -> dict[str, Any]:
        """Move images to the trash, where they stay for 30 days."""
        undo, ids = app.gallery.delete(user, body.ids)
        app.jobs.update_images(user, ids)
        changed(user)
        return {"undo": undo, "ids": ids}

    @routes.post("/app/gallery/restore")
    def restore(body: RestoreBody, user: User) -> dict[str, Any]:
        count = app.gallery.restore(user, body.undo)
        changed(user)
        return {"count": count}

    @routes.post("/app/gallery/zip")
    def prepare_zip(body: ZipBody, user: User) -> dict[str, Any]:
        """Prepare a download of several images."""
        return {"url": f"/app/zips/{app.images.prepare_zip(user, body.ids, body.recipes)}/images.zip"}


def _add_files(routes: APIRouter, app: App) -> None:
    @routes.get("/app/images/{day}/{stem}.png")
    def image(user: User, day: str, stem: str, plain: bool = False, download: bool = False) -> Response:
        """Return an image; plain: without its recipe."""
        headers = dict(_IMMUTABLE)
        if download:
            headers["Content-Disposition"] = f'attachment; filename="{_file_name(day, stem)}"'
        return _file(lambda: app.images.png(user, f"{day}/{stem}", plain), "image/png", headers)

    @routes.get("/app/thumbs/{day}/{stem}.jpg")
    def thumbnail(user: User, day: str, stem: str) -> Response:
        return _file(lambda: app.images.thumbnail(user, f"{day}/{stem}"), "image/jpeg", _IMMUTABLE)

    @routes.get("/app/areas/{day}/{stem}.png")
    def areas(user: User, day: str, stem: str) -> Response:
        """Return an image and, over it, where its concepts are."""
        return _file(lambda: app.images.areas(user, f"{day}/{stem}"), "image/png", _IMMUTABLE)

    @routes.get("/app/grids/{day}/{stem}.html")
    def grid_page(user: User, day: str, stem: str) -> Response:
        """Return a grid's page with all its images, which opens in a tab of its own."""
        headers = {"Content-Security-Policy": DOCUMENT_POLICY, "Cache-Control": "private, no-cache"}
        return _file(lambda: app.images.grid_page(user, f"{day}/{stem}"), "text/html; charset=utf-8", headers)

    @routes.get("/app/zips/{name}/images.zip")
    def zip_file(user: User, name: str) -> Response:
        headers = {"Content-Disposition": 'attachment; filename="images.zip"', "Cache-Control": "no-store"}
        return StreamingResponse(app.images.zip(user, name), media_type="application/zip", headers=headers)


def _file(read: Callable[[], bytes], media_type: str, headers: dict[str, str]) -> Response:
    """Answer with a file; with 404 if there is none."""
    try:
        return Response(read(), media_type=media_type, headers=headers)
    except UserError as error:
        return Response(error.message, 404, media_type="text/plain")


def _file_name(day: str, stem: str) -> str:
    """Return the name of a downloaded file, "" where the parts are not those of an id."""
    is_plain = all(part.isascii() and part.replace("-", "").isalnum() for part in (day, stem))
    return f"{day}-{stem}.png" if is_plain else ""
