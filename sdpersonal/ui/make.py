"""The Make tab: photos in, a concept out."""

from __future__ import annotations

import gradio as gr

from ..service import App
from .shared import Shared


def make_tab(app: App, shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
