"""Serve the page and the HTTP API, closing what Gradio leaves open by default.

Gradio runs in its server mode: it has the queue, the uploads, the logins and the named endpoints of the HTTP API; the
page and its routes are our own (docs/architecture.md says why).
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from time import sleep

import gradio as gr
from gradio.routes import App as GradioApp

from ..backend import App
from ..routes import drafts, events, gallery, generate, library, models, page, state, trainings
from ..routes.requests import add_error_handlers
from .api import add_endpoints
from .auth import LOCALHOST, Access, port_taken_error
from .client_sessions import ClientSessionMiddleware
from .connections import BoundedProtocol, raise_file_limit
from .middleware import JsonCompressionMiddleware, logged_in_user, protect
from .request_bodies import RequestBodyMiddleware
from .uploads import MAX_UPLOAD, UploadDir, UploadFolders

POLL_SECONDS = 0.1  # seconds between polls of Gradio's queue, which has the HTTP API's events only
PROGRESS_SECONDS = 0.5  # seconds between Gradio's looks for progress to tell, also while nothing runs
MAX_QUEUE = 200  # events in Gradio's own queue; jobs for the device have a queue of their own
END_SECONDS = 1  # that open connections have to end when the app ends: a stream of events would never
ROUTERS = (
    page.router,
    state.router,
    events.router,
    generate.router,
    gallery.router,
    library.router,
    models.router,
    trainings.router,
    drafts.router,
)


def build_server(app: App, served_dir: Path, api: bool = True) -> gr.Server:
    """Build the server without starting it. served_dir: folder whose files may be served; api: whether programs may
    use the HTTP API."""
    server = gr.Server(title="sdpersonal", docs_url=None, redoc_url=None, openapi_url=None)
    uploads = UploadFolders(served_dir)
    for router in ROUTERS:
        server.include_router(router(app))
    if api:
        add_endpoints(server, app, uploads)
    add_error_handlers(server)
    server.add_middleware(JsonCompressionMiddleware)  # type: ignore[arg-type]  # mypy cannot match the protocol
    server.add_middleware(ClientSessionMiddleware)  # type: ignore[arg-type]
    server.add_middleware(RequestBodyMiddleware, uploads=uploads)  # type: ignore[arg-type]
    return server


def serve(
    server: gr.Server,
    access: Access,
    served_dir: Path,
    private: list[Path],
    say: Callable[[str], None],
    end_jobs: Callable[[], None] = lambda: None,
    api: bool = True,
    begin_jobs: Callable[[], None] = lambda: None,
) -> None:
    """Serve until interrupted. served_dir: folder whose files may be served; private: folders that must never be
    served; say: called with a line once the page is up; end_jobs: ends all jobs, before the connections are closed;
    api: whether the HTTP API is open; begin_jobs: called in a thread of its own once the page is up.

    Raises UserError if the port is taken.
    """
    try:
        try:
            _launch(server, access, served_dir, private, api)
        except OSError:
            raise port_taken_error(access.port) from None
        say(f"Open http://{LOCALHOST[0]}:{access.port} in a browser; Ctrl-C ends the app.")
        threading.Thread(target=_settle, args=(begin_jobs,), name="start", daemon=True).start()
        with suppress(KeyboardInterrupt):
            while server.get_blocks().is_running:
                sleep(0.1)
    finally:
        end_jobs()
        if server.blocks is not None and hasattr(server.blocks, "server"):
            server.blocks._queue.close()
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it reports each connection that it ends
            server.blocks.server.close()  # waits for its thread: Python takes long to end beside one that is at work


def _settle(begin_jobs: Callable[[], None]) -> None:
    """End the start, beside the main thread: a signal that comes while objects are collected would be lost there."""
    gc.collect()
    gc.freeze()  # what was imported stays: neither collections nor the program's end have to look through it
    gc.enable()
    begin_jobs()


def _launch(server: gr.Server, access: Access, served_dir: Path, private: list[Path], api: bool) -> None:
    raise_file_limit()
    server.launch(
        server_name=access.address,
        server_port=access.port,
        auth=access.check,
        share=False,
        show_error=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_UPLOAD,
        max_threads=64,
        strict_cors=True,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        footer_links=[],
        blocked_paths=[str(folder.resolve()) for folder in private],
        app_kwargs={"lifespan": _protected_by(access, api)},
    )
    blocks = server.get_blocks()
    blocks._queue.sleep_when_free = POLL_SECONDS
    blocks._queue.progress_update_sleep_when_free = PROGRESS_SECONDS
    blocks._queue.max_size = MAX_QUEUE
    blocks._queue.active_jobs = [None] * MAX_QUEUE  # an event that waits for its images takes no thread
    server.uploaded_file_dir = UploadDir(served_dir)  # type: ignore[assignment]  # Gradio takes any path there
    blocks.server.config.http_protocol_class = BoundedProtocol  # read anew for each connection
    blocks.server.config.timeout_graceful_shutdown = END_SECONDS  # read when the server ends


def _protected_by(access: Access, api: bool) -> Callable[[GradioApp], AbstractAsyncContextManager[None]]:
    """Return what runs before the first connection: it puts `protect` around all of Gradio's own middleware, which
    would answer some requests itself."""

    @asynccontextmanager
    async def lifespan(app: GradioApp) -> AsyncIterator[None]:
        if app.middleware_stack is None:
            raise RuntimeError("Starlette has built no middleware to stand in front of.")
        app.middleware_stack = protect(app.middleware_stack, access, logged_in_user, api)
        yield

    return lifespan
