"""The Base tab: the model under the concepts."""

from __future__ import annotations

import gradio as gr

from ..service import App
from .shared import Shared


def base_tab(app: App, shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
