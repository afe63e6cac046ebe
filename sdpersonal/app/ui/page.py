"""Build the whole page: the line about the loaded model, and the tabs."""

from __future__ import annotations

import gradio as gr

from ..backend import App
from .components import GENERATE, LIBRARY, MODELS, TRAIN, SharedComponents, text_line
from .generate.generate_tab import generate_tab
from .library.library_tab import library_tab
from .models.models_tab import models_tab
from .train.train_tab import train_tab

TABS = {
    GENERATE: ("Generate", generate_tab),
    TRAIN: ("Train", train_tab),
    LIBRARY: ("Library", library_tab),
    MODELS: ("Models", models_tab),
}


def build_page(app: App) -> gr.Blocks:
    """Build the page without serving it."""
    with gr.Blocks(title="sdpersonal", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# sdpersonal", elem_id="title")
        base = text_line(app.generation.describe_base(), "model-line")
        prompt = gr.Textbox(
            value="",
            label="Prompt",
            lines=3,
            max_lines=8,
            max_length=2000,
            autofocus=True,
            placeholder="a photo of <me/duck> on the beach",
            elem_id="prompt",
            render=False,
        )
        with gr.Tabs(selected=GENERATE) as tabs:
            shared = SharedComponents(page, tabs, prompt, base)
            for name, (title, fill) in TABS.items():
                with gr.Tab(title, id=name, elem_id=f"tab-{name}") as tab:
                    fill(app, shared, tab)
        page.load(
            app.generation.describe_base,
            None,
            base,
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
    return page
