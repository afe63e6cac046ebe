"""Lay out a training on the Train tab: its live status, and the buttons that control it."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ...backend.train.run_status import RunStatus
from ...backend.train.run_view import RunView
from ...backend.train.train_page import TrainPage
from ..components import EVENT, GENERATE, SharedComponents, session_id, text_line, user_name

CONFIRM_QUESTION = "Discard this training? Nothing will be added, and its copies of your photos will be deleted."
MAX_TRIES = 4  # buttons with prompts
POLL_SECONDS = 1.0  # seconds


@dataclass(frozen=True)
class RunComponents:
    """Components of the view. column: the column with all of them; seen: stamp of the images that are shown."""

    timer: gr.Timer
    column: gr.Column
    title: gr.Textbox
    bar: gr.HTML
    text: gr.Textbox
    curve: gr.HTML
    score: gr.Textbox
    images: gr.Gallery
    seen: gr.State
    running: gr.Row
    sample: gr.Button
    keep: gr.Button
    cancel: gr.Button
    unfinished: gr.Row
    resume: gr.Button
    discard: gr.Button
    confirm: gr.Column
    yes: gr.Button
    no: gr.Button
    done: gr.Column
    tries: tuple[gr.Button, ...]
    report: gr.DownloadButton
    another: gr.Button


def run_box() -> RunComponents:
    """Lay out the view of a training, hidden at first."""
    timer, seen = gr.Timer(POLL_SECONDS, active=False), gr.State("")
    with gr.Column(visible=False, elem_id="run") as column:
        title, bar, text = (
            text_line("", "run-title"),
            gr.HTML("", elem_id="run-bar"),
            text_line("", "run-text", max_lines=10),
        )
        with gr.Row(visible=False) as running:
            sample = gr.Button("Sample now", min_width=110, elem_id="run-sample")
            keep = gr.Button("Stop and keep", variant="primary", min_width=110, elem_id="run-keep")
            cancel = gr.Button("Cancel", min_width=90, elem_id="run-cancel")
        with gr.Row(visible=False) as unfinished:
            resume = gr.Button("Resume", variant="primary", min_width=110, elem_id="run-resume")
            discard = gr.Button("Discard", min_width=110, elem_id="run-discard")
        with gr.Column(visible=False, elem_id="run-confirm") as confirm:
            text_line(CONFIRM_QUESTION)
            with gr.Row():
                yes = gr.Button("Yes, discard it", variant="stop", min_width=110, elem_id="run-yes")
                no = gr.Button("No", min_width=90, elem_id="run-no")
        with gr.Column(visible=False, elem_id="run-done") as done:
            with gr.Row():
                tries = tuple(_try_button(number) for number in range(MAX_TRIES))
            with gr.Row():
                report = gr.DownloadButton("Full report", size="sm", min_width=120, elem_id="run-report")
                another = gr.Button("Train another", variant="primary", size="sm", min_width=120, elem_id="run-another")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                score = text_line("", "run-score", max_lines=10)
                curve = gr.HTML("", elem_id="run-loss")
            with gr.Column(scale=3, min_width=300):
                gallery = gr.Gallery(
                    label="Samples",
                    show_label=False,
                    columns=2,
                    height="auto",
                    object_fit="contain",
                    interactive=False,
                    buttons=["fullscreen"],
                    visible=False,
                    elem_id="run-samples",
                )
    return RunComponents(
        timer,
        column,
        title,
        bar,
        text,
        curve,
        score,
        gallery,
        seen,
        running,
        sample,
        keep,
        cancel,
        unfinished,
        resume,
        discard,
        confirm,
        yes,
        no,
        done,
        tries,
        report,
        another,
    )


def _try_button(number: int) -> gr.Button:
    return gr.Button("", size="sm", min_width=260, elem_id=f"run-try-{number}", elem_classes="try")


def run_updates(run: RunComponents, setup: gr.Column, run_view: tuple[RunView, RunStatus | None] | None) -> dict:
    """Return the updates of the page. run_view: as `TrainPage.run_view` returns it."""
    if run_view is None:
        return {
            run.timer: gr.Timer(active=False),
            run.column: gr.update(visible=False),
            setup: gr.update(visible=True),
            run.seen: "",
        }
    view, status = run_view
    state = status.state if status else "failed"
    is_running = bool(status and status.running)
    return {
        run.timer: gr.Timer(active=is_running),
        run.column: gr.update(visible=True),
        setup: gr.update(visible=False),
        run.title: view.title,
        run.bar: gr.update(value=view.bar, visible=is_running),
        run.text: view.text,
        run.curve: gr.update(value=view.curve, visible=bool(view.curve)),
        run.score: gr.update(value=view.score, visible=bool(view.score)),
        run.running: gr.update(visible=is_running),
        run.sample: gr.update(interactive=state == "training"),
        run.keep: gr.update(interactive=state == "training"),
        run.unfinished: gr.update(visible=state in ("stopped", "failed", "damaged") and status is not None),
        run.resume: gr.update(interactive=state != "damaged"),
        run.done: gr.update(visible=state == "done"),
    } | _image_updates(run, view)


def _image_updates(run: RunComponents, view: RunView) -> dict:
    """Return the updates of images and prompts, empty if nothing is new, because images are large."""
    if not view.images and not view.prompts:
        return {}
    tries = {
        button: gr.update(value=text, visible=bool(text))
        for button, text in zip(run.tries, [*view.prompts, *[""] * MAX_TRIES], strict=False)
    }
    return tries | {
        run.seen: view.stamp,
        run.images: gr.update(value=list(view.images), visible=bool(view.images)),
        run.report: gr.update(value=view.report or None, visible=bool(view.report)),
    }


def connect_run(
    train_page: TrainPage,
    shared: SharedComponents,
    run: RunComponents,
    setup: gr.Column,
    note: gr.Textbox,
    tab: gr.Tab,
) -> None:
    """Update the view when the page or the tab opens, and every second while a training runs."""
    outputs = [value for value in vars(run).values() if not isinstance(value, tuple)]
    outputs = [*outputs, *run.tries, setup, note]

    def refresh(request: gr.Request, seen: str = "") -> dict:
        return run_updates(run, setup, train_page.run_view(session_id(request), user_name(request), seen))

    def on_refresh(request: gr.Request):
        return refresh(request)

    def on_tick(seen, request: gr.Request):
        return refresh(request, seen if isinstance(seen, str) else "")

    def on_resume(request: gr.Request):
        message, error = train_page.resume(user_name(request))
        updates = refresh(request) | {note: gr.update(value=message, visible=bool(message))}
        return updates | ({run.text: error} if error else {})

    def on_discard(request: gr.Request):
        message = train_page.cancel(user_name(request))
        return refresh(request) | {
            run.confirm: gr.update(visible=False),
            note: gr.update(value=message, visible=bool(message)),
        }

    def on_another(request: gr.Request):
        error = train_page.dismiss(user_name(request))
        return refresh(request) | {note: gr.update(value=error, visible=bool(error))}

    for button, command in ((run.sample, "sample"), (run.keep, "keep")):
        _connect_command(train_page, run, button, command, refresh, outputs)
    for button, visible in ((run.cancel, True), (run.discard, True), (run.no, False)):
        button.click(lambda visible=visible: gr.update(visible=visible), None, run.confirm, **EVENT)
    for button, work in ((run.resume, on_resume), (run.yes, on_discard), (run.another, on_another)):
        button.click(work, None, outputs, **EVENT)
    for button in run.tries:
        button.click(lambda text: (text, gr.Tabs(selected=GENERATE)), button, [shared.prompt, shared.tabs], **EVENT)
    run.timer.tick(on_tick, run.seen, outputs, **EVENT)
    shared.page.load(on_refresh, None, outputs, **EVENT)
    tab.select(on_refresh, None, outputs, **EVENT)


def _connect_command(
    train_page: TrainPage, run: RunComponents, button: gr.Button, command: str, refresh, outputs: list
) -> None:
    def on_ask(request: gr.Request):
        error = train_page.send_command(user_name(request), command)
        return refresh(request) | ({run.text: error} if error else {})

    button.click(on_ask, None, outputs, **EVENT)
