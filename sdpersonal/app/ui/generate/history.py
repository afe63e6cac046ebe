"""Lay out the history of generated images."""

from __future__ import annotations

import gradio as gr

from ...backend import App
from ...backend.generate import history
from ..shared import EVENT, Event, SharedComponents, session_id, text_line, user_name
from .results import ResultComponents, gallery_items


def history_box(app: App, shared: SharedComponents, tab: gr.Tab, results: ResultComponents) -> None:
    """Lay out the earlier images; a click selects one as among the newest."""
    with gr.Row():
        search = gr.Textbox(label="Search", placeholder="words of the prompt, or a day", scale=3, min_width=160)
        starred = gr.Checkbox(False, label="Favourites only", scale=1, min_width=140)
    gallery = gr.Gallery(
        show_label=False,
        label="Earlier images",
        columns=4,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="history",
    )
    with gr.Row(elem_classes="heading"):
        newer, older = gr.Button("Newer", size="sm", min_width=80), gr.Button("Older", size="sm", min_width=80)
        note = text_line("", "history-note")
    number, shown_results = gr.State(0), gr.State(())

    def on_look_back(search, starred, number, request: gr.Request):
        page = history.find_images(
            app.workspace, session_id(request), user_name(request), search, bool(starred), number
        )
        return gallery_items(page.results), page.note, page.number, page.results

    def on_pick(found, chosen: gr.SelectData, request: gr.Request):
        result = found[chosen.index] if 0 <= chosen.index < len(found) else None
        return result and history.publish_image(app.workspace, session_id(request), result)

    search_event: Event = {
        "fn": on_look_back,
        "inputs": [search, starred, number],
        "outputs": [gallery, note, number, shown_results],
        **EVENT,
    }
    tab.select(**search_event)
    for event in (search.change, starred.change):
        event(lambda: 0, None, number, **EVENT).then(**search_event)
    for button, step in ((newer, -1), (older, 1)):
        button.click(lambda number, step=step: number + step, number, number, **EVENT).then(**search_event)
    gallery.select(on_pick, shown_results, results.selected, **EVENT)
