"""The HTTP API for programs: named endpoints in Gradio's way, for its Python client and for curl (docs/http-api.md)."""

from __future__ import annotations

import gradio as gr

from ..backend import App
from .uploads import UploadFolders


def add_endpoints(server: gr.Server, app: App, uploads: UploadFolders) -> None:
    """Add the endpoints to the server. uploads: where files for clients are put."""
