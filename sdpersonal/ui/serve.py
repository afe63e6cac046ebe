"""Serving the page to this machine and to no other: what Gradio leaves open by default is closed here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import PersonalError
from .look import CSS, HEAD, THEME

HOSTS = ["127.0.0.1", "localhost"]
WAITING = 64  # events in Gradio's own queue; the line for the device is the studio's


class SameOrigin:
    """Refuses what another site's page sends here, which browsers mark with an Origin that is not ours.

    Gradio itself trusts every page on this machine, whatever its port: it would let it read the pictures.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _foreign(scope):
            await PlainTextResponse("Only this app's own page may do that.", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _foreign(scope: Scope) -> bool:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    origin = headers.get(b"origin")
    return origin is not None and origin != f"{scope['scheme']}://{headers.get(b'host', '')}"


def serve(page: gr.Blocks, port: int, private: list[Path], say: Callable[[str], None]) -> None:
    """Serve until interrupted. private: folders of which nothing may be handed out; say: told when the page is there.

    Raises PersonalError if the port is taken.
    """
    try:
        _launch(page, port, private)
    except OSError:
        problem = f"Port {port} is taken, perhaps by an app that still runs."
        raise PersonalError(problem, "Give another: --port N.") from None
    say(f"Open http://{HOSTS[0]}:{port} in a browser; Ctrl-C ends the app.")
    page.block_thread()


def _launch(page: gr.Blocks, port: int, private: list[Path]) -> None:
    page.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)
    page.launch(
        server_name=HOSTS[0],
        server_port=port,
        share=False,
        show_error=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size="25mb",
        max_threads=64,
        state_session_capacity=50,
        strict_cors=True,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        footer_links=[],
        blocked_paths=[str(folder.resolve()) for folder in private],
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(SameOrigin)]},
        theme=THEME,
        css=CSS,
        head=HEAD,
    )
