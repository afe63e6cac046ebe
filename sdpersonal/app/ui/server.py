"""Serving the page: what Gradio leaves open by default is closed here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from .auth import HERE, Door, taken
from .middleware import LARGEST_UPLOAD, Guard
from .theme import CSS, HEAD, THEME

PAUSE = 0.02  # seconds between looks at the queue; Gradio's thousand a second interrupt the processors that draw
WAITING = 200  # events in Gradio's own queue; the line for the device is the studio's


def serve(page: gr.Blocks, door: Door, shown: Path, private: list[Path], say: Callable[[str], None]) -> None:
    """Serve until interrupted. shown: the folder that may be served from; private: folders of which nothing may be;
    say: told when the page is there.

    Raises PersonalError if the port is taken.
    """
    try:
        _launch(page, door, shown, private)
    except OSError:
        raise taken(door.port) from None
    say(f"Open http://{HERE[0]}:{door.port} in a browser; Ctrl-C ends the app.")
    page.block_thread()


def _launch(page: gr.Blocks, door: Door, shown: Path, private: list[Path]) -> None:
    page.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)
    page._queue.sleep_when_free = PAUSE
    page.launch(
        server_name=door.address,
        server_port=door.port,
        auth=door.check,
        share=False,
        show_error=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=LARGEST_UPLOAD,
        max_threads=64,
        state_session_capacity=50,
        strict_cors=True,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        footer_links=[],
        blocked_paths=[str(folder.resolve()) for folder in private],
        app_kwargs={"middleware": [Middleware(Guard, hosts=door.names, sent=shown)]},
        theme=THEME,
        css=CSS,
        head=HEAD,
    )
