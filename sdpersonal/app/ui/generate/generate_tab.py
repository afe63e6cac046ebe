"""The Generate tab: a prompt and the concepts to put in it on one side, the pictures on the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import gradio as gr

from ....errors import PersonalError
from ...backend import App, View
from ...backend.generate import image_actions
from ...backend.generation_service import endless, pictures
from ..form import Form, fresh_seed
from ..shared import QUICK, Shared, user_of
from .history import history_box
from .prompt import concept_shelf, prompt_box, ready_prompts
from .results import Results, actions, results_box, shown
from .xyz_grid import sheet_box

LONG = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


def generate_tab(app: App, shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    form = Form(shared.prompt)
    with gr.Row(equal_height=False):
        left, right = gr.Column(scale=4, min_width=320), gr.Column(scale=5, min_width=320)
    with right, gr.Tabs():
        with gr.Tab("Pictures"):
            results = results_box()
        with gr.Tab("History") as earlier:
            history_box(app, shared, earlier, results)
    with left:
        prompt_box(app, shared)
        with gr.Row():
            draw = gr.Button("Draw", variant="primary", scale=3, min_width=120, elem_id="draw")
            on_and_on = gr.Button("Endless", scale=1, min_width=90, elem_id="endless")
            stop = gr.Button("Stop", scale=1, min_width=80, elem_id="stop")
        ready_prompts(app, shared)
        concept_shelf(app, shared, tab)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            form.settings(app.studio.base)
            upload = gr.UploadButton("Take the settings of a picture", size="sm", file_count="single", elem_id="load")
        with gr.Accordion("Begin from a picture", open=False, elem_id="begin-box"):
            form.start()
        with gr.Accordion("Sheet", open=False, elem_id="sheet-box"):
            sheet_box(app, form, results)
    with right:
        actions(app, shared, results, form)
    _connect(app, shared, form, results, draw, on_and_on, stop, upload)


def begun(views: Iterable[View], seed) -> Iterator[tuple]:
    """As `shown`; at first the picture that was chosen is let go, and the seed is shown."""
    news = (None, seed)
    for update in shown(views):
        yield *update, *news
        news = (gr.skip(), gr.skip())


def _connect(app: App, shared: Shared, form: Form, results: Results, draw, on_and_on, stop, upload) -> None:
    studio = app.studio

    def on_draw(values, request: gr.Request):
        page, seed = request.session_hash, form.components["seed"]
        values[seed] = fresh_seed() if values[form.fresh] else values[seed]
        yield from begun(
            studio.do(lambda: pictures(form.read(values, app, page)), page, user_of(request)), values[seed]
        )

    def on_endless(values, request: gr.Request):
        page, lists = request.session_hash, app.house.wildcards
        yield from begun(
            studio.do(lambda: endless(form.read(values, app, page), lists), page, user_of(request)), gr.skip()
        )

    def on_upload(path):
        try:
            found = image_actions.settings_in(path)
        except PersonalError as error:
            return str(error), gr.skip(), *form.filled({})
        return image_actions.taken(found), False, *form.filled(dict(found.fields))

    def on_pick(results, chosen: gr.SelectData):
        return results[chosen.index] if 0 <= chosen.index < len(results) else None

    outputs = [*results.outputs, results.picked, form.components["seed"]]
    gr.on([draw.click, shared.prompt.submit], on_draw, form.inputs, outputs, trigger_mode="once", **LONG)
    on_and_on.click(on_endless, form.inputs, outputs, trigger_mode="once", **LONG)
    upload.upload(on_upload, upload, [results.status, form.fresh, *form.components.values()], **QUICK)
    results.pictures.select(on_pick, results.results, results.picked, **QUICK)

    def on_stop(request: gr.Request):
        studio.stop(request.session_hash)

    def on_leave(request: gr.Request):
        studio.leave(request.session_hash)

    stop.click(on_stop, **QUICK)
    shared.page.unload(on_leave)
