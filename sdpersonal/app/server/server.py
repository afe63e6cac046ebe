"""Serve the page and the HTTP API, closing what Gradio leaves open by default.

Gradio runs in its server mode: it has the queue, the uploads, the logins and the named endpoints of the HTTP API; the
page and its routes are our own (docs/architecture.md says why).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from time import sleep

import gradio as gr
from gradio.routes import App as GradioApp

from ..backend import App
from ..routes import events, library, page, state
from ..routes.requests import add_error_handlers
from .auth import LOCALHOST, Access, port_taken_error
from .connections import BoundedProtocol, raise_file_limit
from .middleware import logged_in_user, protect
from .request_bodies import RequestBodyMiddleware
from .uploads import MAX_UPLOAD, UploadDir

POLL_SECONDS = 0.1  # seconds between polls of Gradio's queue, which has the HTTP API's events only
MAX_QUEUE = 200  # events in Gradio's own queue; jobs for the device have the `JobQueue`
END_SECONDS = 1  # that open connections have to end when the app ends: a stream of events would never
ROUTERS = (page.router, state.router, events.router, library.router)


def build_server(app: App, served_dir: Path) -> gr.Server:
    """Build the server without starting it. served_dir: folder whose files may be served."""
    server = gr.Server(title="sdpersonal", docs_url=None, redoc_url=None, openapi_url=None)
    for router in ROUTERS:
        server.include_router(router(app))
    server.mount("/page", page.static_files())
    add_error_handlers(server)
    server.add_middleware(RequestBodyMiddleware, served_dir=served_dir)  # type: ignore[arg-type]
    return server


def serve(
    server: gr.Server,
    access: Access,
    served_dir: Path,
    private: list[Path],
    say: Callable[[str], None],
    end_jobs: Callable[[], None] = lambda: None,
) -> None:
    """Serve until interrupted. served_dir: folder whose files may be served; private: folders that must never be
    served; say: called with a line once the page is up; end_jobs: ends all jobs, before the connections are closed.

    Raises UserError if the port is taken.
    """
    try:
        _launch(server, access, served_dir, private)
    except OSError:
        raise port_taken_error(access.port) from None
    blocks = server.get_blocks()
    say(f"Open http://{LOCALHOST[0]}:{access.port} in a browser; Ctrl-C ends the app.")
    try:
        with suppress(KeyboardInterrupt):
            while blocks.is_running:
                sleep(0.1)
    finally:
        end_jobs()
        blocks._queue.close()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it reports each connection that it ends
        blocks.server.close()  # waits for the server's thread: Python takes long to end beside one that is at work


def _launch(server: gr.Server, access: Access, served_dir: Path, private: list[Path]) -> None:
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
        app_kwargs={"lifespan": _protected_by(access)},
    )
    blocks = server.get_blocks()
    blocks._queue.sleep_when_free = POLL_SECONDS
    server.uploaded_file_dir = UploadDir(served_dir)  # type: ignore[assignment]  # Gradio takes any path there
    blocks.server.config.http_protocol_class = BoundedProtocol  # read anew for each connection
    blocks.server.config.timeout_graceful_shutdown = END_SECONDS  # read when the server ends


def _protected_by(access: Access) -> Callable[[GradioApp], AbstractAsyncContextManager[None]]:
    """Return what runs before the first connection: it puts `protect` around all of Gradio's own middleware, which
    would answer some requests itself."""

    @asynccontextmanager
    async def lifespan(app: GradioApp) -> AsyncIterator[None]:
        if app.middleware_stack is None:
            raise RuntimeError("Starlette has built no middleware to stand in front of.")
        app.middleware_stack = protect(app.middleware_stack, access, logged_in_user)
        yield

    return lifespan
