"""Lay out the Generate tab: the prompt, concepts and settings on one side, the images on the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import gradio as gr

from ....errors import UserError
from ...backend import App, JobView
from ...backend.generate import image_actions
from ...backend.generate.generate_form import random_seed
from ...backend.generate.jobs import AXES, NO_AXIS, endless_job, generate_job, grid_job
from ..components import EVENT, SharedComponents, session_id, user_name
from ..file_inputs import FileButton
from .generate_form import GenerateForm
from .prompt import concepts_box, presets_box, prompt_box
from .results import ResultComponents, actions_box, history_box, results_box, view_updates


def generate_tab(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    form = GenerateForm(shared.prompt)
    with gr.Row(equal_height=False):
        left, right = gr.Column(scale=4, min_width=320), gr.Column(scale=5, min_width=320)
    with right, gr.Tabs():
        with gr.Tab("Images"):
            results = results_box()
        with gr.Tab("History") as history_tab:
            history_box(app, history_tab, results)
    with left:
        prompt_box(app, shared)
        with gr.Row():
            generate_button = gr.Button("Generate", variant="primary", scale=3, min_width=120, elem_id="generate")
            endless_button = gr.Button("Endless", scale=1, min_width=90, elem_id="endless")
            stop = gr.Button("Stop", scale=1, min_width=80, elem_id="stop")
        presets_box(app, shared)
        concepts_box(app, shared, tab)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            form.settings(app.generation.base)
            upload = FileButton("Read settings from an image", size="sm", file_count="single", elem_id="read-settings")
        with gr.Accordion("Image to image", open=False, elem_id="init-image-box"):
            form.init_image()
        with gr.Accordion("XYZ grid", open=False, elem_id="grid-box"):
            grid_box(app, form, results)
    with right:
        actions_box(app, results, form)
    _connect(app, shared, form, results, generate_button, endless_button, stop, upload)


def start_updates(views: Iterable[JobView], seed) -> Iterator[tuple]:
    """Yield updates as `view_updates` does; the first one also clears the selected image and shows the seed."""
    extra_updates = (None, seed)
    for update in view_updates(views):
        yield *update, *extra_updates
        extra_updates = (gr.skip(), gr.skip())


def _connect(
    app: App,
    shared: SharedComponents,
    form: GenerateForm,
    results: ResultComponents,
    generate: gr.Button,
    endless: gr.Button,
    stop: gr.Button,
    upload: FileButton,
) -> None:
    generation = app.generation

    def on_generate(values, request: gr.Request):
        page, seed = session_id(request), form.components["seed"]
        values[seed] = random_seed() if values[form.random_seed] else values[seed]
        yield from start_updates(
            generation.submit(lambda: generate_job(form.read(values, app, page)), page, user_name(request)),
            values[seed],
        )

    def on_endless(values, request: gr.Request):
        page, wildcards = session_id(request), app.workspace.wildcards
        yield from start_updates(
            generation.submit(lambda: endless_job(form.read(values, app, page), wildcards), page, user_name(request)),
            gr.skip(),
        )

    def on_upload(path):
        try:
            settings = image_actions.read_settings(path)
        except UserError as error:
            return str(error), gr.skip(), *form.updates({})
        finally:
            app.workspace.discard_upload(str(path))
        return image_actions.settings_note(settings), False, *form.updates(dict(settings.fields))

    def on_select(results, chosen: gr.SelectData):
        return results[chosen.index] if 0 <= chosen.index < len(results) else None

    outputs = [*results.outputs, results.selected, form.components["seed"]]
    gr.on([generate.click, shared.prompt.submit], on_generate, form.inputs, outputs, **EVENT)
    endless.click(on_endless, form.inputs, outputs, **EVENT)
    upload.upload(on_upload, upload, [results.status, form.random_seed, *form.components.values()], **EVENT)
    results.gallery.select(on_select, results.results, results.selected, **EVENT)

    def on_stop(request: gr.Request):
        generation.stop(session_id(request))

    def on_leave(request: gr.Request):
        generation.close_session(session_id(request))

    stop.click(on_stop, **EVENT)
    shared.page.unload(on_leave)


def grid_box(app: App, form: GenerateForm, results: ResultComponents) -> None:
    """Lay out the axes of the grid and connect them."""
    axes: list[gr.Dropdown | gr.Textbox] = []
    for name, first in (("Columns", "Seed"), ("Rows", NO_AXIS)):
        with gr.Row():
            axes.append(gr.Dropdown([NO_AXIS, *AXES], value=first, label=name, min_width=140))
            axes.append(gr.Textbox(AXES.get(first, ("", ""))[1], label="Values", max_length=500, min_width=140))
    generate = gr.Button("Generate the grid", elem_id="generate-grid")

    def on_axis(axis):
        return AXES.get(axis, ("", ""))[1] if isinstance(axis, str) else ""

    def on_grid(values, request: gr.Request):
        page = session_id(request)

        def create_job():
            return grid_job(form.read(values, app, page), *(values[component] for component in axes))

        yield from view_updates(app.generation.submit(create_job, page, user_name(request)))

    for axis, axis_values in (axes[:2], axes[2:]):
        axis.input(on_axis, axis, axis_values, **EVENT)
    generate.click(on_grid, form.inputs | set(axes), results.outputs, **EVENT)
