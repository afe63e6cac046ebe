"""Offer the HTTP API for programs: named endpoints of Gradio, for its Python client and for curl (docs/http-api.md).

Each endpoint does what a route of the page does, with the same checks, for the same user. Gradio reads the annotations
of the parameters when the server starts, so that they are values here, not texts.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import anyio
import gradio as gr

from ...errors import UserError
from ..backend import App
from ..backend.error_text import describe_error
from ..backend.generate.generate_form import form_defaults, request_fields
from ..backend.generate.jobs import generate_job
from ..backend.library.import_export import import_uploads, make_export
from ..backend.library.listing import concept_list
from ..backend.models.picker import models_page
from ..backend.train.run_commands import run_command
from ..backend.train.run_view import run_details, run_summaries
from ..backend.user_jobs import LiveJob
from .api_files import ClientFiles, upload_path, upload_paths
from .uploads import UploadFolders

_LISTS = ("concepts", "images", "trainings", "models")
_MAX_LISTED = 500
_WAITING_SECONDS, _RUNNING_SECONDS = 0.5, 0.1  # between looks at a job


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn errors into Gradio's own kind, whose text the client is told; internals are only logged."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else describe_error(error)
        raise gr.Error(text, duration=None, print_exception=False) from None


def add_endpoints(server: gr.Server, app: App, uploads: UploadFolders) -> None:
    """Add the endpoints to the server. uploads: where files for clients are put."""
    files = ClientFiles(app.workspace, app.gallery, uploads)
    add = partial(server.api, concurrency_limit=8)
    server.api(_generate_endpoint(app, files), name="generate", concurrency_limit=None)  # jobs have their own queue
    add(_train_endpoint(app), name="train")
    add(_progress_endpoint(app), name="progress")
    add(_cancel_endpoint(app), name="cancel")
    add(_list_endpoint(app), name="list")
    add(_import_endpoint(app), name="import")
    add(_export_endpoint(app, files), name="export")


# Gradio would take a class's method for a function without a name, so that each endpoint is a function in a function.


def _generate_endpoint(app: App, files: ClientFiles) -> Callable[..., AsyncIterator[list[dict]]]:
    async def generate(
        prompt: str,
        negative: str = "",
        num_images: int = 1,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        width: int | None = None,
        height: int | None = None,
        init_image: dict | None = None,
        mask: dict | None = None,
        strength: float | None = None,
        settings: dict | None = None,
        request: gr.Request = None,  # type: ignore[assignment]  # Gradio gives it
    ) -> AsyncIterator[list[dict]]:
        """Generate images. init_image, mask: uploaded files; settings: further fields of the form, such as scheduler.
        Each image is {"id", "seed", "image": file}; images that are finished come while others are generated."""
        form = {"prompt": prompt, "negative": negative, "num_images": num_images, "seed": seed, "steps": steps}
        form |= {"guidance": guidance, "width": width, "height": height, "strength": strength}
        form = {name: value for name, value in form.items() if value is not None}
        with _in_words():
            job = await anyio.to_thread.run_sync(_submit, app, form, settings, init_image, mask, request.username)
            try:
                async for images in _finished_images(job, files, request.username):
                    yield images
            finally:
                with suppress(UserError):  # it has ended
                    app.jobs.cancel(request.username, job.id)

    return generate


def _submit(
    app: App, arguments: dict[str, Any], settings: object, init_image: object, mask: object, user: str | None
) -> LiveJob:
    """Queue the job. Raises UserError."""
    defaults = form_defaults(app.generation.base)
    form = {name: value for name, value in defaults.items() if name not in ("init", "mask")}
    form |= _mapping(settings, "settings") | arguments
    if unknown := [str(name) for name in form if name not in defaults]:
        raise UserError(f"settings has no {unknown[0][:60]!r}.", f"It has {', '.join(defaults)}.")
    for name, file in (("init", init_image), ("mask", mask)):
        form[name] = {"upload": upload_path(file, name)} if file is not None else None
    fields = request_fields(form, app.gallery, user)
    return app.jobs.submit(user, generate_job(fields, app.workspace.wildcards))


async def _finished_images(job: LiveJob, files: ClientFiles, user: str | None) -> AsyncIterator[list[dict]]:
    """Yield the job's images so far whenever there is a new one, until it has ended."""
    progress, images, known = gr.Progress(), [], set()
    has_ended = False
    while not has_ended:
        has_ended = job.has_ended  # before its images are read
        for image_id in [name for name in job.image_ids if name not in known]:
            known.add(image_id)
            images.append(await anyio.to_thread.run_sync(files.image, user, image_id))
            yield list(images)
        view = job.view()
        if view["total"]:
            progress((view["done"], view["total"]), desc=view["message"], unit="steps")
        if not has_ended:
            await asyncio.sleep(_WAITING_SECONDS if view["state"] == "waiting" else _RUNNING_SECONDS)
    if job.state != "done":
        raise UserError(job.message)


def _train_endpoint(app: App) -> Callable[..., dict]:
    def train(
        photos: list[dict],
        name: str,
        kind: str = "object",
        class_noun: str = "",
        captions: list[str] | None = None,
        settings: dict | None = None,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> dict:
        """Train a concept on uploaded photos; return the training's id and the concept's name. kind: "object",
        "person" or "style"; captions: one for each photo; settings: further fields of the form, such as steps."""
        with _in_words():
            user, paths = request.username, upload_paths(photos, "photos")
            if captions is not None and (not isinstance(captions, list) or len(captions) != len(paths)):
                raise UserError("captions must be a list with one text for each photo.")
            values = {"name": name, "kind": kind, "noun": class_noun} | _mapping(settings, "settings")
            return _start_training(app, user, paths, values, captions or [])

    return train


def _start_training(
    app: App, user: str | None, paths: list[str], values: dict[str, Any], captions: list[str]
) -> dict[str, Any]:
    """Train by way of a draft, as the page does; it is gone afterwards. Raises UserError."""
    draft = app.drafts.create(user)
    try:
        app.drafts.set_form(user, draft["id"], values)
        view = app.drafts.add_photos(user, draft["id"], paths)
        if view["problems"]:
            raise UserError(" ".join(view["problems"]))
        if captions:
            names = [photo["id"] for photo in view["photos"]]
            app.drafts.set_captions(user, draft["id"], dict(zip(names, map(str, captions), strict=True)))
        return {"id": app.drafts.start(user, draft["id"]), "token": view["name"]["token"]}
    except BaseException:
        app.drafts.delete(user, draft["id"])
        raise


def _progress_endpoint(app: App) -> Callable[..., dict]:
    def progress(
        id: str = "",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> dict:
        """Return {"jobs": [...], "trainings": [...]} of the user, or the one job or the details of the one training
        with this id."""
        with _in_words():
            user = request.username
            jobs = app.jobs.views(user)
            if not id:
                return {"jobs": jobs, "trainings": run_summaries(app.trainings.runs(user), app.trainings)}
            job = next((job for job in jobs if job["id"] == id), None)
            return job or run_details(app.trainings.find(user, str(id)), app.trainings)

    return progress


def _cancel_endpoint(app: App) -> Callable[..., dict]:
    def cancel(
        id: str,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> dict:
        """End the job or the training with this id; finished images and saved steps stay."""
        with _in_words():
            user = request.username
            if any(job["id"] == id for job in app.jobs.views(user)):
                app.jobs.cancel(user, id)
                return {"message": "Cancelled."}
            return {"message": run_command(app.trainings, user, str(id), "cancel")}

    return cancel


def _list_endpoint(app: App) -> Callable[..., list[dict]]:
    def list_(
        what: str = "concepts",
        search: str = "",
        limit: int = 100,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> list[dict]:
        """List "concepts", "images", "trainings" or "models", the newest first; search: words that must occur."""
        with _in_words():
            if what not in _LISTS:
                raise UserError(f"what must be one of {', '.join(_LISTS)}.")
            if not isinstance(limit, int) or not 1 <= limit <= _MAX_LISTED or not isinstance(search, str):
                raise UserError(f"limit must be a number from 1 to {_MAX_LISTED}, and search a text.")
            return _listed(app, request.username, what, search, limit)

    list_.__name__ = "list"
    return list_


def _listed(app: App, user: str | None, what: str, search: str, limit: int) -> list[dict[str, Any]]:
    if what == "images":
        return app.gallery.page(user, search, limit=limit).images
    if what == "concepts":
        items = concept_list(app.workspace.library.entries(), app.generation.base.kind)["concepts"]
    elif what == "trainings":
        items = run_summaries(app.trainings.runs(user), app.trainings)
    else:
        items = models_page(app)["models"]
    words = search.casefold().split()
    return [item for item in items if all(word in _searched_text(item) for word in words)][:limit]


def _searched_text(item: Mapping[str, Any]) -> str:
    """Return a concept's own text for searches, else all texts of an item that are not addresses."""
    texts = [value for value in item.values() if isinstance(value, str) and not value.startswith("/")]
    return str(item.get("text") or " ".join(texts)).casefold()


def _import_endpoint(app: App) -> Callable[..., list[dict]]:
    def import_(
        files: list[dict],
        name: str = "",
        duplicates: str = "refuse",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> list[dict]:
        """Import uploaded concept files: [{"name", "status", "message", "token"}]. name: for a single concept;
        duplicates: "refuse", "skip", "rename", "versions" or "replace"."""
        with _in_words():
            outcomes = import_uploads(app.workspace, upload_paths(files, "files"), name, duplicates)
            app.events.publish_to_all("library", {})
            return [asdict(outcome) for outcome in outcomes]

    import_.__name__ = "import"
    return import_


def _export_endpoint(app: App, files: ClientFiles) -> Callable[..., dict]:
    def export(
        token: str,
        program: str = "native",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> dict:
        """Export a concept for another program: {"file", "program", "steps", "typed", "notes"}."""
        with _in_words():
            made = make_export(app.workspace.library, token, program)
            file = files.put(request.username, made.name, made.data)
            return {"file": file, "program": made.program, "steps": [*made.steps], "typed": made.typed} | {
                "notes": [*made.notes]
            }

    return export


def _mapping(value: object, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be an object of names and values.")
    return dict(value)
