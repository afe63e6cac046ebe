"""The Library tab: its concepts, their thumbnails and cards, files in and out, and the trash."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from ...errors import UserError
from ..backend import App
from ..backend.library.listing import concept_list
from ..backend.library.thumbnails import ThumbnailStore
from .requests import User

_IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}


def router(app: App) -> APIRouter:
    routes = APIRouter()
    library = app.workspace.library
    thumbnails = ThumbnailStore(app.workspace)

    @routes.get("/app/concepts")
    def concepts(user: User) -> dict[str, Any]:
        """List the newest version of every concept."""
        entries = library.entries()
        thumbnails.remember(entries)
        return concept_list(entries, app.generation.base.kind)

    @routes.get("/app/concept-thumbs/{key}.webp")
    def thumbnail(key: str, user: User, size: str = "small") -> Response:
        """Return a thumbnail; its address changes when the concept does."""
        try:
            data = thumbnails.get(key, size)
        except UserError as error:
            return Response(error.message, 404, media_type="text/plain")
        return Response(data, media_type="image/webp", headers=_IMMUTABLE)

    return routes
