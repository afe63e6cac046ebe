"""The Library tab: every concept, its card and its versions."""

from __future__ import annotations

import gradio as gr

from ..service import App
from .shared import Shared


def library_tab(app: App, shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
