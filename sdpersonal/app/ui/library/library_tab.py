"""Lay out the Library tab: a tile for every concept, and the selected concept's card beside them."""

from __future__ import annotations

import gradio as gr

from ....concepts.card import BASE_TITLES
from ...backend import App
from ...backend.library.tiles import PAGE_SIZE, concept_tiles
from ..components import EVENT, Event, LibraryState, SharedComponents, text_line, thumbnails
from .comparison import comparison_box, conflicts_box
from .concept_details import details_box
from .deletion import delete_box, trash_box
from .import_export import export_box, import_box

NO_CONCEPTS = "No concepts yet. Train one on the Train tab, or import files below."
NO_MATCHES = "No concept matches. Try fewer words."
EXPORT = "Export to another program"
SCROLL_TO_CARD = """() => {
    if (innerWidth < 700) document.querySelector("#card").scrollIntoView({behavior: "smooth"});
}"""  # on a phone the card is below the tiles
KINDS = [("All kinds", ""), ("Objects", "object"), ("People", "person"), ("Styles", "style")]


def library_tab(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    state = LibraryState(gr.State(""), gr.State(0))
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            _tiles_box(app, shared, tab, state)
        with gr.Column(scale=5, min_width=320):
            with details_box(app, shared, tab, state), gr.Accordion(EXPORT, open=False, elem_id="export-box"):
                export_box(app, state)
            delete_box(app, state)
    with gr.Accordion("Import files", open=False, elem_id="import-box"):
        import_box(app, state)
    with gr.Accordion("Compare two concepts", open=False, elem_id="compare-box"):
        comparison_box(app, tab, state)
    with gr.Accordion("Check for conflicts", open=False, elem_id="check-box"):
        conflicts_box(app, tab, state)
    with gr.Accordion("Trash", open=False, elem_id="trash-box"):
        trash_box(app, tab, state)


def _tiles_box(app: App, shared: SharedComponents, tab: gr.Tab, state: LibraryState) -> None:
    search = gr.Textbox(label="Search", placeholder="name, title, class noun …", elem_id="tiles-search", max_lines=1)
    with gr.Row():
        kind = gr.Dropdown(KINDS, value="", label="Kind", min_width=140, elem_id="tiles-kind")
        bases = [("All models", ""), *((text[0].upper() + text[1:], name) for name, text in BASE_TITLES.items())]
        base = gr.Dropdown(bases, value="", label="Model", min_width=140, elem_id="tiles-model")
    gallery = thumbnails("Concepts", "tiles")
    more = gr.Button("Show more", size="sm", visible=False, elem_id="tiles-more")
    note = text_line("", "tiles-note")
    tokens, limit = gr.State(()), gr.State(PAGE_SIZE)

    def on_refresh(search, kind, base, limit):
        tiles = concept_tiles(app.workspace, base, search, kind, limit, app.generation.base.kind)
        message = tiles.note or NO_CONCEPTS
        message = message if tiles.tokens or not tiles.note else f"{message} {NO_MATCHES}"
        gallery_update = gr.update(value=tiles.thumbnails, visible=bool(tiles.tokens), selected_index=None)
        return gallery_update, tiles.tokens, message, gr.update(visible=len(tiles.tokens) < tiles.match_count)

    def on_select(tokens, chosen: gr.SelectData):
        index = chosen.index
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else gr.skip()

    refresh: Event = {
        "fn": on_refresh,
        "inputs": [search, kind, base, limit],
        "outputs": [gallery, tokens, note, more],
        **EVENT,
    }
    state.refresh(tab, on_refresh, refresh["inputs"], refresh["outputs"])
    shared.base.change(**refresh)
    for field in (search, kind, base):
        field.change(lambda: PAGE_SIZE, None, limit, **EVENT).then(trigger_mode="always_last", **refresh)
    more.click(lambda limit: limit * 4, limit, limit, **EVENT).then(**refresh)
    gallery.select(on_select, tokens, state.chosen, **EVENT)
    gallery.select(None, js=SCROLL_TO_CARD, **EVENT)
