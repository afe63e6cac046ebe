"""Serve the page, closing what Gradio leaves open by default."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from time import sleep

import gradio as gr
from gradio.routes import App as GradioApp
from starlette.middleware import Middleware

from .auth import LOCALHOST, Access, port_taken_error
from .connections import BoundedProtocol, raise_file_limit
from .middleware import logged_in_user, protect
from .page_sessions import PageSessionMiddleware, PageStates
from .request_bodies import RequestBodyMiddleware
from .theme import CSS, HEAD, THEME
from .uploads import MAX_UPLOAD, UploadDir

POLL_SECONDS = 0.02  # seconds between queue polls; Gradio's thousand polls a second slow down generation on a CPU
MAX_QUEUE = 200  # events in Gradio's own queue; jobs for the device have the `JobQueue`
END_SECONDS = 1  # that open connections have to end when the app ends: a heartbeat would never


def serve(
    page: gr.Blocks,
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
        _launch(page, access, served_dir, private)
    except OSError:
        raise port_taken_error(access.port) from None
    say(f"Open http://{LOCALHOST[0]}:{access.port} in a browser; Ctrl-C ends the app.")
    try:
        with suppress(KeyboardInterrupt):
            while page.is_running:
                sleep(0.1)
    finally:
        end_jobs()
        page._queue.close()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it reports each connection that it ends
        page.server.close()  # waits for the server's thread: Python takes long to end beside one that is at work


def _launch(page: gr.Blocks, access: Access, served_dir: Path, private: list[Path]) -> None:
    raise_file_limit()
    page.queue(max_size=MAX_QUEUE, default_concurrency_limit=4, api_open=False)
    page._queue.sleep_when_free = POLL_SECONDS
    page.launch(
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
        app_kwargs={
            "lifespan": _protected_by(access, page),
            "middleware": [
                Middleware(RequestBodyMiddleware, served_dir=served_dir),
                Middleware(PageSessionMiddleware, close_page=_page_closer(page)),
            ],
        },
        theme=THEME,
        css=CSS,
        head=HEAD,
    )
    page.app.uploaded_file_dir = UploadDir(served_dir)  # type: ignore[assignment]  # Gradio takes any path there
    page.server.config.http_protocol_class = BoundedProtocol  # read anew for each connection
    page.server.config.timeout_graceful_shutdown = END_SECONDS  # read when the server ends


def _protected_by(access: Access, page: gr.Blocks) -> Callable[[GradioApp], AbstractAsyncContextManager[None]]:
    """Return what runs before the first connection: it puts `protect` around all of Gradio's own middleware, which
    would answer some requests itself, and replaces Gradio's states of pages."""

    @asynccontextmanager
    async def lifespan(app: GradioApp) -> AsyncIterator[None]:
        if app.middleware_stack is None:
            raise RuntimeError("Starlette has built no middleware to stand in front of.")
        app.middleware_stack = protect(app.middleware_stack, access, logged_in_user)
        app.state_holder = PageStates()
        app.state_holder.set_blocks(page)
        yield

    return lifespan


def _page_closer(page: gr.Blocks) -> Callable[[str], None]:
    """Return a function that does for a session hash what `page.unload` does when the browser closes the page."""
    events = page.fns.values()
    handlers = [event.fn for event in events if event.fn and any(name == "unload" for _, name in event.targets)]

    def close(session: str) -> None:
        for handler in handlers:
            handler(gr.Request(session_hash=session))

    return close
