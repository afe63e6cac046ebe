"""Lay out the Library tab: a tile for every concept, and the selected concept's card beside them."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ....concepts.card import BASE_TITLES
from ...backend import App
from ...backend.library.tiles import PAGE_SIZE, concept_tiles
from ..shared import QUICK_EVENT, SharedComponents, text_line
from .compare import comparison_box, conflicts_box
from .concept_details import details_box
from .import_export import export_box, import_box
from .trash import delete_box, trash_box

NO_CONCEPTS = "No concepts yet. Make one from photos (the tab beside this one), or add files below."
NO_MATCHES = "Nothing like that is here. Try fewer words."
EXPORT = "Take it to another program"
SCROLL_TO_CARD = """() => {
    if (innerWidth < 700) document.querySelector("#card").scrollIntoView({behavior: "smooth"});
}"""  # on a phone the card is below the tiles
KINDS = [("Everything", ""), ("Objects", "object"), ("People", "person"), ("Styles", "style")]


@dataclass(frozen=True)
class LibraryState:
    """State of the tab. chosen: token of the concept whose card is shown, "" for none; changes: a counter of changes
    to the library, which makes everything that shows it refresh."""

    chosen: gr.State
    changes: gr.State

    def on(self, tab: gr.Tab, both: bool, **event) -> None:
        """Run an event when the tab is opened or the library changes; both: also when another concept is selected."""
        for listener in (tab.select, self.changes.change, *([self.chosen.change] if both else [])):
            listener(**event | QUICK_EVENT)


def library_tab(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    state = LibraryState(gr.State(""), gr.State(0))
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            _tiles_box(app, shared, tab, state)
        with gr.Column(scale=5, min_width=320):
            with details_box(app, shared, tab, state), gr.Accordion(EXPORT, open=False, elem_id="export-box"):
                export_box(app, state)
            delete_box(app, tab, state)
    with gr.Accordion("Add files", open=False, elem_id="import-box"):
        import_box(app, state)
    with gr.Accordion("Compare two", open=False, elem_id="beside-box"):
        comparison_box(app, tab, state)
    with gr.Accordion("Do they go together?", open=False, elem_id="check-box"):
        conflicts_box(app, tab, state)
    with gr.Accordion("Deleted", open=False, elem_id="trash-box"):
        trash_box(app, tab, state)


def _tiles_box(app: App, shared: SharedComponents, tab: gr.Tab, state: LibraryState) -> None:
    search = gr.Textbox(label="Search", placeholder="name, title, what it is ...", elem_id="shelf-search", max_lines=1)
    with gr.Row():
        kind = gr.Dropdown(KINDS, value="", label="Show", min_width=140, elem_id="shelf-kind")
        bases = [("Every base", ""), *((text[0].upper() + text[1:], name) for name, text in BASE_TITLES.items())]
        base = gr.Dropdown(bases, value="", label="Made for", min_width=140, elem_id="shelf-base")
    gallery = gr.Gallery(
        show_label=False,
        label="Concepts",
        columns=4,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="shelf",
    )
    more = gr.Button("Show more", size="sm", visible=False, elem_id="shelf-more")
    note = text_line("", "shelf-note")
    tokens, limit = gr.State(()), gr.State(PAGE_SIZE)

    def on_look(search, kind, base, limit):
        tiles = concept_tiles(app.workspace, base, search, kind, limit, app.generation.base.kind)
        message = tiles.note or NO_CONCEPTS
        message = message if tiles.tokens or not tiles.note else f"{message} {NO_MATCHES}"
        gallery_update = gr.update(value=tiles.pictures, visible=bool(tiles.tokens), selected_index=None)
        return gallery_update, tiles.tokens, message, gr.update(visible=len(tiles.tokens) < tiles.match_count)

    def on_pick(tokens, chosen: gr.SelectData):
        index = chosen.index
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else gr.skip()

    look_event = {"fn": on_look, "inputs": [search, kind, base, limit], "outputs": [gallery, tokens, note, more]}
    state.on(tab, both=False, **look_event)
    shared.base.change(**look_event | QUICK_EVENT)
    for field in (search, kind, base):
        field.change(lambda: PAGE_SIZE, None, limit, **QUICK_EVENT).then(
            trigger_mode="always_last", **look_event | QUICK_EVENT
        )
    more.click(lambda limit: limit * 4, limit, limit, **QUICK_EVENT).then(**look_event | QUICK_EVENT)
    gallery.select(on_pick, tokens, state.chosen, **QUICK_EVENT)
    gallery.select(None, js=SCROLL_TO_CARD, **QUICK_EVENT)
