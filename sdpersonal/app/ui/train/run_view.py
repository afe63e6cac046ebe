"""Lay out a training on the Train tab: its live status, and the buttons that control it."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ...backend.train.page import TrainPage
from ..shared import GENERATE, QUICK_EVENT, SharedComponents, text_line, user_name

CONFIRM_QUESTION = "Throw it away? Nothing will be added, and its copies of your photos go too."
MAX_TRIES = 4  # buttons with prompts
POLL_SECONDS = 1.0  # seconds


@dataclass(frozen=True)
class RunComponents:
    """Components of the view. whole: the column with all of them; seen: stamp of the images that are shown."""

    timer: gr.Timer
    column: gr.Column
    title: gr.Textbox
    bar: gr.HTML
    words: gr.Textbox
    curve: gr.HTML
    score: gr.Textbox
    pictures: gr.Gallery
    seen: gr.State
    running: gr.Row
    sample: gr.Button
    keep: gr.Button
    cancel: gr.Button
    ended: gr.Row
    resume: gr.Button
    discard: gr.Button
    sure: gr.Column
    yes: gr.Button
    no: gr.Button
    done: gr.Column
    tries: tuple[gr.Button, ...]
    report: gr.DownloadButton
    another: gr.Button


def run_box() -> RunComponents:
    """Lay out the view of a training, hidden at first."""
    timer, seen = gr.Timer(POLL_SECONDS, active=False), gr.State("")
    with gr.Column(visible=False, elem_id="run") as whole:
        title, bar, words = (
            text_line("", "run-title"),
            gr.HTML("", elem_id="run-bar"),
            text_line("", "run-words", max_lines=10),
        )
        with gr.Row(visible=False) as running:
            sample = gr.Button("Sample now", min_width=110, elem_id="run-sample")
            keep = gr.Button("Stop and keep", variant="primary", min_width=110, elem_id="run-keep")
            cancel = gr.Button("Cancel", min_width=90, elem_id="run-cancel")
        with gr.Row(visible=False) as ended:
            resume = gr.Button("Go on", variant="primary", min_width=110, elem_id="run-go-on")
            throw = gr.Button("Throw away", min_width=110, elem_id="run-throw")
        with gr.Column(visible=False, elem_id="run-sure") as confirm_column:
            text_line(CONFIRM_QUESTION)
            with gr.Row():
                yes = gr.Button("Yes, throw it away", variant="stop", min_width=110, elem_id="run-yes")
                no = gr.Button("No", min_width=90, elem_id="run-no")
        with gr.Column(visible=False, elem_id="run-done") as done:
            with gr.Row():
                tries = tuple(_try_button(number) for number in range(MAX_TRIES))
            with gr.Row():
                report = gr.DownloadButton("The whole report", size="sm", min_width=120, elem_id="run-report")
                another = gr.Button("Make another", variant="primary", size="sm", min_width=120, elem_id="run-another")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                score = text_line("", "run-score", max_lines=10)
                curve = gr.HTML("", elem_id="run-curve")
            with gr.Column(scale=3, min_width=300):
                gallery = gr.Gallery(
                    label="Sample pictures",
                    show_label=False,
                    columns=2,
                    height="auto",
                    object_fit="contain",
                    interactive=False,
                    buttons=["fullscreen"],
                    visible=False,
                    elem_id="run-pictures",
                )
    return RunComponents(
        timer,
        whole,
        title,
        bar,
        words,
        curve,
        score,
        gallery,
        seen,
        running,
        sample,
        keep,
        cancel,
        ended,
        resume,
        throw,
        confirm_column,
        yes,
        no,
        done,
        tries,
        report,
        another,
    )


def _try_button(number: int) -> gr.Button:
    return gr.Button("", size="sm", min_width=260, elem_id=f"run-try-{number}", elem_classes="try")


def run_updates(run: RunComponents, preparing: gr.Column, found) -> dict:
    """Return the updates of the page. found: the result of `TrainPage.run_view`."""
    if found is None:
        return {
            run.timer: gr.Timer(active=False),
            run.column: gr.update(visible=False),
            preparing: gr.update(visible=True),
            run.seen: "",
        }
    view, status = found
    state = status.state if status else "failed"
    is_running = bool(status and status.running)
    return {
        run.timer: gr.Timer(active=is_running),
        run.column: gr.update(visible=True),
        preparing: gr.update(visible=False),
        run.title: view.title,
        run.bar: gr.update(value=view.bar, visible=is_running),
        run.words: view.text,
        run.curve: gr.update(value=view.curve, visible=bool(view.curve)),
        run.score: gr.update(value=view.score, visible=bool(view.score)),
        run.running: gr.update(visible=is_running),
        run.sample: gr.update(interactive=state == "learning"),
        run.keep: gr.update(interactive=state == "learning"),
        run.ended: gr.update(visible=state in ("stopped", "failed") and status is not None),
        run.done: gr.update(visible=state == "done"),
    } | _image_updates(run, view)


def _image_updates(run: RunComponents, view) -> dict:
    """Return the updates of images and prompts, empty if nothing is new, because images are large."""
    if not view.pictures and not view.prompts:
        return {}
    tries = {
        button: gr.update(value=text, visible=bool(text))
        for button, text in zip(run.tries, [*view.prompts, *[""] * MAX_TRIES], strict=False)
    }
    return tries | {
        run.seen: view.stamp,
        run.pictures: gr.update(value=list(view.pictures), visible=bool(view.pictures)),
        run.report: gr.update(value=view.report or None, visible=bool(view.report)),
    }


def connect_run(
    workshop: TrainPage,
    shared: SharedComponents,
    run: RunComponents,
    preparing: gr.Column,
    note: gr.Textbox,
    tab: gr.Tab,
) -> None:
    """Update the view when the page or the tab opens, and every second while a training runs."""
    outputs = [value for value in vars(run).values() if not isinstance(value, tuple)]
    outputs = [*outputs, *run.tries, preparing, note]

    def look(request: gr.Request, seen: str = "") -> dict:
        return run_updates(run, preparing, workshop.run_view(request.session_hash, user_name(request), seen))

    def on_look(request: gr.Request):
        return look(request)

    def on_tick(seen, request: gr.Request):
        return look(request, seen if isinstance(seen, str) else "")

    def on_go_on(request: gr.Request):
        error = workshop.resume(user_name(request))
        return look(request) | ({run.words: error} if error else {})

    def on_yes(request: gr.Request):
        message = workshop.cancel(user_name(request))
        return look(request) | {
            run.sure: gr.update(visible=False),
            note: gr.update(value=message, visible=bool(message)),
        }

    def on_another(request: gr.Request):
        error = workshop.dismiss(user_name(request))
        return look(request) | {note: gr.update(value=error, visible=bool(error))}

    for button, wish in ((run.sample, "sample"), (run.keep, "keep")):
        _connect_command(workshop, run, button, wish, look, outputs)
    for button, seen in ((run.cancel, True), (run.discard, True), (run.no, False)):
        button.click(lambda seen=seen: gr.update(visible=seen), None, run.sure, **QUICK_EVENT)
    for button, work in ((run.resume, on_go_on), (run.yes, on_yes), (run.another, on_another)):
        button.click(work, None, outputs, **QUICK_EVENT)
    for button in run.tries:
        button.click(
            lambda text: (text, gr.Tabs(selected=GENERATE)), button, [shared.prompt, shared.tabs], **QUICK_EVENT
        )
    run.timer.tick(on_tick, run.seen, outputs, **QUICK_EVENT)
    shared.page.load(on_look, None, outputs, **QUICK_EVENT)
    tab.select(on_look, None, outputs, **QUICK_EVENT)


def _connect_command(
    workshop: TrainPage, run: RunComponents, button: gr.Button, command: str, look, outputs: list
) -> None:
    def on_ask(request: gr.Request):
        error = workshop.send_command(user_name(request), command)
        return look(request) | ({run.words: error} if error else {})

    button.click(on_ask, None, outputs, **QUICK_EVENT)
