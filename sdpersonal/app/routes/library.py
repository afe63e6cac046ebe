"""Answer requests of the Library tab: its concepts, their thumbnails and cards, files in and out, and the trash."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from ...concepts.importing import Duplicates
from ...errors import UserError
from ..backend import App
from ..backend.library.card_text import CONSENT, KINDS
from ..backend.library.comparison import MAX_CONCEPTS, check_conflicts, compare_concepts
from ..backend.library.concept_details import LICENCES, concept_details, rename_concept, save_card
from ..backend.library.deletion import delete, empty_trash, list_deletions, undo_deletion
from ..backend.library.import_export import MAX_FILES, PROGRAMS, import_message, import_uploads, make_export
from ..backend.library.listing import concept_list, token_choices
from ..backend.library.thumbnails import ThumbnailStore
from .requests import Body, User

_IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
_CHOICES = {
    "kinds": list(KINDS.items()),
    "programs": list(PROGRAMS.items()),
    "licences": list(LICENCES.items()),
    "consents": list(CONSENT.items()),
    "max_files": MAX_FILES,
    "max_mixed": MAX_CONCEPTS,
}

TokenText = Annotated[str, Field(max_length=200)]
CardText = Annotated[str, Field(max_length=10_000)]


class EditBody(Body):
    token: TokenText
    values: Annotated[dict[str, CardText], Field(max_length=20)]


class RenameBody(Body):
    token: TokenText
    name: TokenText


class DeleteBody(Body):
    token: TokenText
    all_versions: bool = False


class RestoreBody(Body):
    undo: TokenText


class ImportBody(Body):
    """duplicates: what to do if a name is taken, as in `importing.import_all`, or replace the concept of that name."""

    uploads: Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=10 * MAX_FILES)]
    name: TokenText = ""
    duplicates: Duplicates | Literal["replace"] = "refuse"


class ConflictsBody(Body):
    tokens: Annotated[list[TokenText], Field(max_length=100)]


def router(app: App) -> APIRouter:
    """Return the routes that read; `changes` are those that change something."""
    routes = APIRouter()
    library = app.workspace.library
    thumbnails = ThumbnailStore(app.workspace)
    routes.include_router(_changes(app))
    routes.include_router(_exports(app))

    @routes.get("/app/concepts")
    def concepts(user: User) -> dict[str, Any]:
        """List the newest version of every concept."""
        entries = library.entries()
        thumbnails.remember(entries)
        return concept_list(entries, app.generation.base.kind)

    @routes.get("/app/concepts/choices")
    def choices(user: User) -> dict[str, Any]:
        """Return the choices of the tab's fields: [[value, label]]."""
        return _CHOICES

    @routes.get("/app/concepts/versions")
    def versions(user: User) -> dict[str, Any]:
        """List every version of every undamaged concept, to compare them."""
        return {"versions": token_choices(library)}

    @routes.get("/app/concept-thumbs/{key}.webp")
    def thumbnail(key: str, user: User, size: str = "small") -> Response:
        """Return a thumbnail; its address changes when the concept does."""
        try:
            data = thumbnails.get(key, size)
        except UserError as error:
            return Response(error.message, 404, media_type="text/plain")
        return Response(data, media_type="image/webp", headers=_IMMUTABLE)

    @routes.get("/app/concept")
    def concept(user: User, token: TokenText = "") -> dict[str, Any]:
        """Return all that the card of a concept shows."""
        return concept_details(library, token, app.generation.base.kind)

    @routes.get("/app/concepts/compare")
    def compare(user: User, first: TokenText = "", second: TokenText = "") -> dict[str, Any]:
        """Compare two concepts, or two versions of one."""
        return compare_concepts(library, first, second)

    @routes.post("/app/concepts/conflicts")
    def conflicts(user: User, body: ConflictsBody) -> dict[str, Any]:
        """Say how 2 to 4 concepts mix in one prompt."""
        return {"sentences": check_conflicts(library, body.tokens)}

    @routes.get("/app/concepts/trash")
    def trash(user: User) -> dict[str, Any]:
        """List what can be restored."""
        return list_deletions(library)

    return routes


def _changes(app: App) -> APIRouter:
    routes = APIRouter()
    library = app.workspace.library

    def changed() -> None:
        app.events.publish_to_all("library", {})

    @routes.post("/app/concept/edit")
    def edit(user: User, body: EditBody) -> dict[str, Any]:
        """Save fields of a concept's card; return its details."""
        token = save_card(library, body.token, body.values)
        changed()
        return concept_details(library, str(token), app.generation.base.kind)

    @routes.post("/app/concept/rename")
    def rename(user: User, body: RenameBody) -> dict[str, str]:
        """Rename all versions of a concept, also in its prompts."""
        token, message = rename_concept(library, body.token, body.name)
        changed()
        return {"token": str(token), "message": message}

    @routes.post("/app/concept/delete")
    def remove(user: User, body: DeleteBody) -> dict[str, str]:
        """Delete a version of a concept, or all."""
        deletion = delete(library, body.token, body.all_versions)
        changed()
        return deletion

    @routes.post("/app/concept/restore")
    def restore(user: User, body: RestoreBody) -> dict[str, str]:
        """Undo a deletion."""
        restored = undo_deletion(library, body.undo)
        changed()
        return restored

    @routes.post("/app/concepts/trash/empty")
    def empty(user: User) -> dict[str, str]:
        """Empty the trash for good."""
        return {"message": empty_trash(library)}

    @routes.post("/app/concepts/import")
    def import_files(user: User, body: ImportBody) -> dict[str, Any]:
        """Import uploaded files; tell of each file how it went."""
        files = import_uploads(app.workspace, body.uploads, body.name, body.duplicates)
        if any(file.token for file in files):
            changed()
        return {"files": [asdict(file) for file in files], "message": import_message(files)}

    return routes


def _exports(app: App) -> APIRouter:
    routes = APIRouter()
    library = app.workspace.library

    @routes.get("/app/concept/export")
    def export(user: User, token: TokenText = "", program: TokenText = "") -> dict[str, Any]:
        """Return the files of a concept for another program, how they are installed, and where to download them."""
        made = make_export(library, token, program)
        query = urlencode({"token": token, "program": program})
        return made.as_json() | {"url": f"/app/concept/export/{quote(made.name)}?{query}"}

    @routes.get("/app/concept/export/{name}")
    def download(user: User, name: str, token: TokenText = "", program: TokenText = "") -> Response:
        """Return the exported file, or a zip of the files."""
        made = make_export(library, token, program)
        headers = {"Content-Disposition": f'attachment; filename="{made.name}"', "Cache-Control": "no-store"}
        return Response(made.data, media_type="application/octet-stream", headers=headers)

    return routes
