"""Serve the page itself: its HTML, style sheets and scripts, as they are in the package."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import brotli  # type: ignore[import-untyped]  # brotli ships no types
from fastapi import APIRouter, Request
from fastapi.responses import Response

from ... import storage
from ..backend import App
from .requests import USER_KEY

PAGE_FOLDER = Path(__file__).parents[1] / "page"
FOLDER_URL = "/page/"
_MAX_BYTES = 1 << 20  # of a file of the page
_MIN_COMPRESSED = 500  # bytes of a file that is worth compressing
_TEXT_TYPES = ("text/", "image/svg+xml", "application/json")
_VERSIONED = re.compile(r"v-([0-9a-f]{12})/(.+)", re.S)
_YEAR = "max-age=31536000, immutable"
ROBOTS = "User-agent: *\nDisallow: /\n"


@dataclass(frozen=True)
class PageFile:
    """A file of the page. encodings: its bytes by the name of the encoding, "" for none."""

    media_type: str
    etag: str
    encodings: dict[str, bytes]


class PageFiles:
    """The files of the page's folder, each read and compressed once for each version of the folder.

    The HTML names them by addresses with the folder's version, so that a browser keeps them for good.
    """

    def __init__(self, folder: Path = PAGE_FOLDER):
        self.folder = folder
        self._state: tuple[tuple[str, int, int], ...] = ()
        self._version = ""
        self._files: dict[str, PageFile] = {}
        self._lock = threading.Lock()

    def version(self) -> str:
        """Return a text that changes with any file of the page."""
        with self._lock:
            state = tuple(
                (path.relative_to(self.folder).as_posix(), stat.st_size, stat.st_mtime_ns)
                for path in sorted(self.folder.rglob("*"))
                if path.is_file() and (stat := path.stat())
            )
            if state != self._state:
                self._state, self._files = state, {}
                self._version = hashlib.sha256(repr(state).encode()).hexdigest()[:12]
            return self._version

    def file(self, name: str) -> PageFile | None:
        """Return a file of the page, None if there is none of that name."""
        version = self.version()
        with self._lock:
            if all(name != known for known, _, _ in self._state):
                return None
            if name not in self._files:
                self._files[name] = self._read(name, version)
            return self._files[name]

    def _read(self, name: str, version: str) -> PageFile:
        data = storage.read_bytes(self.folder / name, _MAX_BYTES)
        media_type = _media_type(name)
        if media_type.startswith("text/html"):
            data = data.replace(f'"{FOLDER_URL}'.encode(), f'"{FOLDER_URL}v-{version}/'.encode())
        encodings = {"": data}
        if media_type.startswith(_TEXT_TYPES) and len(data) >= _MIN_COMPRESSED:
            encodings |= {"br": brotli.compress(data, quality=9), "gzip": gzip.compress(data, 9, mtime=0)}
        return PageFile(media_type, hashlib.sha256(data).hexdigest()[:32], encodings)


def router(app: App, files: PageFiles | None = None) -> APIRouter:
    routes = APIRouter()
    pages = files or PageFiles()

    @routes.api_route("/", methods=["GET", "HEAD"])
    def page(request: Request) -> Response:
        """Return the page, or the login page if nobody is logged in."""
        return _response(request, pages, "index.html" if USER_KEY in request.scope else "login.html", "no-cache")

    @routes.api_route(FOLDER_URL + "{name:path}", methods=["GET", "HEAD"])
    def page_file(request: Request, name: str) -> Response:
        """Return a style sheet, a script or an image of the page."""
        versioned = _VERSIONED.fullmatch(name)
        if versioned is None:
            return _response(request, pages, name, "no-cache")
        is_present = versioned[1] == pages.version()
        return _response(request, pages, versioned[2], _YEAR if is_present else "no-cache")

    @routes.api_route("/favicon.ico", methods=["GET", "HEAD"])
    @routes.api_route("/favicon.svg", methods=["GET", "HEAD"])
    def icon(request: Request) -> Response:
        return _response(request, pages, "favicon.svg", "max-age=86400")

    @routes.api_route("/robots.txt", methods=["GET", "HEAD"])
    def robots() -> Response:
        return Response(ROBOTS, media_type="text/plain; charset=utf-8")

    return routes


def _media_type(name: str) -> str:
    # The system's own table may have another type for scripts, which browsers then refuse.
    known = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    media_type = known.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type


def _response(request: Request, files: PageFiles, name: str, cached: str) -> Response:
    file = files.file(name)
    if file is None:
        return Response("There is no such file.", 404, media_type="text/plain")
    accepted = {part.split(";")[0].strip() for part in request.headers.get("accept-encoding", "").split(",")}
    encoding = next((name for name in ("br", "gzip") if name in accepted and name in file.encodings), "")
    etag = f'"{file.etag}-{encoding}"' if encoding else f'"{file.etag}"'
    headers = {"Cache-Control": cached, "ETag": etag, "Vary": "Accept-Encoding"}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if etag in known:
        return Response(status_code=304, headers=headers)
    headers |= {"Content-Encoding": encoding} if encoding else {}
    return Response(file.encodings[encoding], media_type=file.media_type, headers=headers)
