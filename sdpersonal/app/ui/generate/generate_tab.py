"""Lay out the Generate tab: the prompt, concepts and settings on one side, the images on the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import gradio as gr

from ....errors import UserError
from ...backend import App, JobView
from ...backend.generate import image_actions
from ...backend.generation_service import endless_job, generate_job
from ..form import GenerateForm, random_seed
from ..shared import QUICK_EVENT, SharedComponents, user_name
from .history import history_box
from .prompt import concepts_box, presets_box, prompt_box
from .results import ResultComponents, actions_box, results_box, view_updates
from .xyz_grid import grid_box

LONG_EVENT = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


def generate_tab(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    form = GenerateForm(shared.prompt)
    with gr.Row(equal_height=False):
        left, right = gr.Column(scale=4, min_width=320), gr.Column(scale=5, min_width=320)
    with right, gr.Tabs():
        with gr.Tab("Pictures"):
            results = results_box()
        with gr.Tab("History") as history_tab:
            history_box(app, shared, history_tab, results)
    with left:
        prompt_box(app, shared)
        with gr.Row():
            draw_button = gr.Button("Draw", variant="primary", scale=3, min_width=120, elem_id="draw")
            endless_button = gr.Button("Endless", scale=1, min_width=90, elem_id="endless")
            stop = gr.Button("Stop", scale=1, min_width=80, elem_id="stop")
        presets_box(app, shared)
        concepts_box(app, shared, tab)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            form.settings(app.generation.base)
            upload = gr.UploadButton("Take the settings of a picture", size="sm", file_count="single", elem_id="load")
        with gr.Accordion("Begin from a picture", open=False, elem_id="begin-box"):
            form.start()
        with gr.Accordion("Sheet", open=False, elem_id="sheet-box"):
            grid_box(app, form, results)
    with right:
        actions_box(app, shared, results, form)
    _connect(app, shared, form, results, draw_button, endless_button, stop, upload)


def start_updates(views: Iterable[JobView], seed) -> Iterator[tuple]:
    """Yield updates as `view_updates` does; the first one also clears the selected image and shows the seed."""
    extra_updates = (None, seed)
    for update in view_updates(views):
        yield *update, *extra_updates
        extra_updates = (gr.skip(), gr.skip())


def _connect(
    app: App, shared: SharedComponents, form: GenerateForm, results: ResultComponents, draw, on_and_on, stop, upload
) -> None:
    generation = app.generation

    def on_draw(values, request: gr.Request):
        page, seed = request.session_hash, form.components["seed"]
        values[seed] = random_seed() if values[form.random_seed] else values[seed]
        yield from start_updates(
            generation.submit(lambda: generate_job(form.read(values, app, page)), page, user_name(request)),
            values[seed],
        )

    def on_endless(values, request: gr.Request):
        page, lists = request.session_hash, app.workspace.wildcards
        yield from start_updates(
            generation.submit(lambda: endless_job(form.read(values, app, page), lists), page, user_name(request)),
            gr.skip(),
        )

    def on_upload(path):
        try:
            settings = image_actions.read_settings(path)
        except UserError as error:
            return str(error), gr.skip(), *form.updates({})
        return image_actions.settings_note(settings), False, *form.updates(dict(settings.fields))

    def on_pick(results, chosen: gr.SelectData):
        return results[chosen.index] if 0 <= chosen.index < len(results) else None

    outputs = [*results.outputs, results.selected, form.components["seed"]]
    gr.on([draw.click, shared.prompt.submit], on_draw, form.inputs, outputs, trigger_mode="once", **LONG_EVENT)
    on_and_on.click(on_endless, form.inputs, outputs, trigger_mode="once", **LONG_EVENT)
    upload.upload(on_upload, upload, [results.status, form.random_seed, *form.components.values()], **QUICK_EVENT)
    results.pictures.select(on_pick, results.results, results.selected, **QUICK_EVENT)

    def on_stop(request: gr.Request):
        generation.stop(request.session_hash)

    def on_leave(request: gr.Request):
        generation.close_session(request.session_hash)

    stop.click(on_stop, **QUICK_EVENT)
    shared.page.unload(on_leave)
