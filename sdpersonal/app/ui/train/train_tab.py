"""Lay out the Train tab: photos and settings in, a trained concept out."""

from __future__ import annotations

import atexit

import gradio as gr

from ...backend import App
from ...backend.train.train_form import START_HINT
from ...backend.train.train_page import TrainPage
from ..components import EVENT, SharedComponents, session_id, text_line, user_name
from .run_view import connect_run, run_box, run_updates
from .train_form import connect_form, form_box
from .uploads import connect_photos, photos_box

DEFAULT_OWNER = "me"


def train_tab(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    train_page = TrainPage(app.workspace, app.generation)
    atexit.register(train_page.close)  # saves a running training and deletes the uploaded photos
    note = text_line("", "train-note", visible=False)  # above the form and above a run, whichever is shown
    with gr.Column(elem_id="train-setup") as setup, gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            photos = photos_box()
        with gr.Column(scale=4, min_width=320):
            fields, name_note = form_box(DEFAULT_OWNER)
            plan_line = text_line(START_HINT, "train-plan", max_lines=10)
            start = gr.Button("Start training", variant="primary", elem_id="train-start")
    run = run_box()
    connect_photos(train_page, photos, fields)
    connect_form(train_page, shared, fields, name_note, plan_line, [photos.count.change])
    connect_run(train_page, shared, run, setup, note, tab)

    def on_start(request: gr.Request, *values):
        page, user = session_id(request), user_name(request)
        error = train_page.start(page, user, fields.read(values))
        if error:
            return {plan_line: error}
        return run_updates(run, setup, train_page.run_view(page, user)) | {note: gr.update(value="", visible=False)}

    def on_leave(request: gr.Request):
        train_page.close_session(session_id(request))

    outputs = [value for value in vars(run).values() if not isinstance(value, tuple)]
    start.click(on_start, fields.inputs, [*outputs, *run.tries, setup, note, plan_line], **EVENT)
    shared.page.unload(on_leave)
