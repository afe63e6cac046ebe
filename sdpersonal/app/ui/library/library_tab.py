"""The Library tab: every concept as a picture, and beside them the one that was chosen."""

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
}"""  # on a phone it is below the pictures
KINDS = [("Everything", ""), ("Objects", "object"), ("People", "person"), ("Styles", "style")]


@dataclass(frozen=True)
class LibraryState:
    """chosen: the token of the concept whose card is shown, "" for none; changes: counts what was changed in the
    library, so that what shows it looks again."""

    chosen: gr.State
    changes: gr.State

    def on(self, tab: gr.Tab, both: bool, **event) -> None:
        """Answer whenever the library has changed or is looked at; both: and when another concept is chosen."""
        for listen in (tab.select, self.changes.change, *([self.chosen.change] if both else [])):
            listen(**event | QUICK_EVENT)


def library_tab(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    desk = LibraryState(gr.State(""), gr.State(0))
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            _tiles_box(app, shared, tab, desk)
        with gr.Column(scale=5, min_width=320):
            with details_box(app, shared, tab, desk), gr.Accordion(EXPORT, open=False, elem_id="export-box"):
                export_box(app, desk)
            delete_box(app, tab, desk)
    with gr.Accordion("Add files", open=False, elem_id="import-box"):
        import_box(app, desk)
    with gr.Accordion("Compare two", open=False, elem_id="beside-box"):
        comparison_box(app, tab, desk)
    with gr.Accordion("Do they go together?", open=False, elem_id="check-box"):
        conflicts_box(app, tab, desk)
    with gr.Accordion("Deleted", open=False, elem_id="trash-box"):
        trash_box(app, tab, desk)


def _tiles_box(app: App, shared: SharedComponents, tab: gr.Tab, desk: LibraryState) -> None:
    search = gr.Textbox(label="Search", placeholder="name, title, what it is ...", elem_id="shelf-search", max_lines=1)
    with gr.Row():
        kind = gr.Dropdown(KINDS, value="", label="Show", min_width=140, elem_id="shelf-kind")
        bases = [("Every base", ""), *((text[0].upper() + text[1:], name) for name, text in BASE_TITLES.items())]
        base = gr.Dropdown(bases, value="", label="Made for", min_width=140, elem_id="shelf-base")
    pictures = gr.Gallery(
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
        found = concept_tiles(app.workspace, base, search, kind, limit, app.generation.base.kind)
        said = found.note or NO_CONCEPTS
        said = said if found.tokens or not found.note else f"{said} {NO_MATCHES}"
        shown = gr.update(value=found.pictures, visible=bool(found.tokens), selected_index=None)
        return shown, found.tokens, said, gr.update(visible=len(found.tokens) < found.found)

    def on_pick(tokens, chosen: gr.SelectData):
        at = chosen.index
        return tokens[at] if isinstance(at, int) and 0 <= at < len(tokens) else gr.skip()

    asked = {"fn": on_look, "inputs": [search, kind, base, limit], "outputs": [pictures, tokens, note, more]}
    desk.on(tab, both=False, **asked)
    shared.base.change(**asked | QUICK_EVENT)
    for field in (search, kind, base):
        field.change(lambda: PAGE_SIZE, None, limit, **QUICK_EVENT).then(
            trigger_mode="always_last", **asked | QUICK_EVENT
        )
    more.click(lambda limit: limit * 4, limit, limit, **QUICK_EVENT).then(**asked | QUICK_EVENT)
    pictures.select(on_pick, tokens, desk.chosen, **QUICK_EVENT)
    pictures.select(None, js=SCROLL_TO_CARD, **QUICK_EVENT)
