"""Check the files of the HTTP API: uploads that a client names, and files that only its user can fetch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ... import storage
from ...errors import UserError
from ...image_metadata import MAX_IMAGE_BYTES, Recipe, read_recipe
from ..backend import Workspace
from ..backend.generate.gallery import Gallery
from .request_bodies import FILE
from .uploads import Refusal, UploadFolders

MAX_FILES = 200  # that a call may name


@dataclass(frozen=True)
class ClientFiles:
    """Makes files for clients, each in a folder of the user's uploads, with their limits and their lifetime."""

    workspace: Workspace
    gallery: Gallery
    uploads: UploadFolders

    def put(self, user: str | None, name: str, data: bytes) -> dict[str, Any]:
        """Store a file for the user's client; return it as Gradio's clients read it. Raises UserError."""
        try:
            upload = self.uploads.begin(user or "")
        except Refusal as refusal:
            raise UserError(refusal.message) from None
        is_stored = False
        try:
            self.uploads.grow(upload, len(data))
            path = storage.make_folder(upload.folder / "result") / name
            storage.write_bytes(path, data)
            is_stored = True
        except Refusal as refusal:
            raise UserError(refusal.message) from None
        finally:
            self.uploads.end(upload, is_stored)
        address = {"path": str(path), "url": FILE + quote(str(path))}
        return address | {"orig_name": name, "size": len(data), "meta": {"_type": "gradio.FileData"}}

    def image(self, user: str | None, image_id: str) -> dict[str, Any]:
        """Return a saved image of the user for their client, with its id and seed."""
        path = self.gallery.find(user, image_id).path
        data = storage.read_bytes(path, MAX_IMAGE_BYTES)
        recipe = read_recipe(data, "This image")
        seed = recipe.seed if isinstance(recipe, Recipe) else None
        return {"id": image_id, "seed": seed, "image": self.put(user, path.name, data)}


def upload_path(value: object, name: str) -> str:
    """Return the path of an uploaded file that a client names as {"path": path}; `RequestBodyMiddleware` has checked
    that it is the user's. Raises UserError for anything else."""
    path = value.get("path") if isinstance(value, Mapping) else None
    if not isinstance(path, str) or not path:
        raise UserError(f"{name} must be an uploaded file.", 'In Python handle_file(path), over HTTP {"path": path}.')
    return path


def upload_paths(values: object, name: str) -> list[str]:
    """Return the paths of a list of uploaded files. Raises UserError."""
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_FILES:
        raise UserError(f"{name} must be a list of uploaded files.", f"At most {MAX_FILES}.")
    return [upload_path(value, name) for value in values]
