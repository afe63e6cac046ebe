"""Lay out the XYZ grid: one prompt, with one setting changed from column to column and another from row to row."""

from __future__ import annotations

import gradio as gr

from ...backend import App
from ...backend.generate.xyz_grid import AXES, NO_AXIS, grid_job
from ..form import GenerateForm
from ..shared import user_name
from .results import ResultComponents, view_updates


def grid_box(app: App, form: GenerateForm, results: ResultComponents) -> None:
    """Lay out the axes of the grid and connect them."""
    sides = []
    for name, first in (("Columns", "Seed"), ("Rows", NO_AXIS)):
        with gr.Row():
            sides.append(gr.Dropdown([NO_AXIS, *AXES], value=first, label=name, min_width=140))
            sides.append(gr.Textbox(AXES.get(first, ("", ""))[1], label="Values", max_length=500, min_width=140))
    draw = gr.Button("Draw the sheet", elem_id="draw-sheet")

    def on_kind(kind):
        return AXES.get(kind, ("", ""))[1] if isinstance(kind, str) else ""

    def on_sheet(values, request: gr.Request):
        page = request.session_hash

        def order():
            return grid_job(form.read(values, app, page), *(values[side] for side in sides))

        yield from view_updates(app.generation.submit(order, page, user_name(request)))

    quick = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    for kind, text in (sides[:2], sides[2:]):
        kind.input(on_kind, kind, text, **quick)
    draw.click(on_sheet, form.inputs | set(sides), results.outputs, trigger_mode="once", **quick)
