"""The page itself: one HTML file, its style sheets and its scripts, as they are in the package."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from ... import storage
from ..backend import App

PAGE_FOLDER = Path(__file__).parents[1] / "page"
_MAX_BYTES = 1 << 20  # of a file of the page


def router(app: App) -> APIRouter:
    routes = APIRouter()

    @routes.get("/", response_class=HTMLResponse)
    def page(request: Request) -> Response:
        data = storage.read_bytes(PAGE_FOLDER / "index.html", _MAX_BYTES)
        return Response(data, media_type="text/html; charset=utf-8", headers={"Cache-Control": "no-cache"})

    return routes


def static_files() -> StaticFiles:
    """Serve the style sheets and scripts, at /page."""
    return StaticFiles(directory=PAGE_FOLDER)
