"""A sheet: one prompt, with one thing changed from column to column and another from row to row."""

from __future__ import annotations

import gradio as gr

from ...backend import App
from ...backend.generate.xyz_grid import NOTHING, SIDES, sheet_work
from ..form import Form
from ..shared import user_of
from .results import Results, shown


def sheet_box(app: App, form: Form, results: Results) -> None:
    """Lay out the builder and connect it."""
    sides = []
    for name, first in (("Columns", "Seed"), ("Rows", NOTHING)):
        with gr.Row():
            sides.append(gr.Dropdown([NOTHING, *SIDES], value=first, label=name, min_width=140))
            sides.append(gr.Textbox(SIDES.get(first, ("", ""))[1], label="Values", max_length=500, min_width=140))
    draw = gr.Button("Draw the sheet", elem_id="draw-sheet")

    def on_kind(kind):
        return SIDES.get(kind, ("", ""))[1] if isinstance(kind, str) else ""

    def on_sheet(values, request: gr.Request):
        page = request.session_hash

        def order():
            return sheet_work(form.read(values, app, page), *(values[side] for side in sides))

        yield from shown(app.studio.do(order, page, user_of(request)))

    quick = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    for kind, text in (sides[:2], sides[2:]):
        kind.input(on_kind, kind, text, **quick)
    draw.click(on_sheet, form.inputs | set(sides), results.outputs, trigger_mode="once", **quick)
