"""Lay out the Models tab: facts of the loaded model, and the choice of another."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

from ...backend import App
from ...backend.error_text import value_or_error
from ...backend.models.hardware import Hardware
from ...backend.models.picker import (
    FIXED_BASE,
    ModelChoice,
    download_question,
    list_models,
    model_facts,
    switch_model,
)
from ..components import EVENT, Event, EventOptions, SharedComponents, text_line

HUB_HINT = "Or enter the name of a model on the Hugging Face Hub: owner/name."
LOADING_MESSAGE = "Loading, as soon as no image is being generated …"
LOAD_EVENT: EventOptions = {"concurrency_limit": 1, "show_progress": "full", "api_visibility": "private"}


def models_tab(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    gr.Markdown("### Loaded model")
    facts = gr.HTML("", elem_id="model-facts", elem_classes="facts")
    tab.select(lambda: facts_html(app), None, facts, **EVENT)
    shared.base.change(lambda: facts_html(app), None, facts, **EVENT)
    if app.fixed_base:
        gr.Markdown(FIXED_BASE)
    else:
        gr.Markdown("### Other models")
        _choice_box(app, shared, tab)


def _choice_box(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    hardware_line = text_line("", "hardware")
    table = gr.HTML("", elem_id="models-table", elem_classes="table")
    with gr.Row(equal_height=False):
        name = gr.Dropdown(
            [], label="Model", allow_custom_value=True, scale=3, min_width=180, elem_id="model-name", info=HUB_HINT
        )
        load = gr.Button(
            "Load", variant="primary", scale=0, min_width=120, elem_id="model-load", elem_classes="aligned-field"
        )
    with gr.Column(visible=False, elem_id="model-confirm", elem_classes="confirm") as question_column:
        question_line = text_line("", "model-question")
        with gr.Row():
            yes = gr.Button("Download and load", variant="primary", size="sm", elem_id="model-yes")
            no = gr.Button("Cancel", size="sm", elem_id="model-no")
    status_line = text_line("", "model-message")

    def on_refresh():
        models, error = value_or_error(list_models, app)
        hardware, _ = value_or_error(Hardware.detect)
        update = gr.update(choices=[(model.label, model.name) for model in models or ()])
        return hardware.describe() if hardware else "", choices_html(models or ()), update, error or gr.skip()

    def on_load(name):
        question, error = value_or_error(download_question, app, name)
        yield gr.update(visible=bool(question)), question or "", error or ("" if question else LOADING_MESSAGE)
        if question == "":
            line, error = value_or_error(switch_model, app, name)
            yield gr.update(visible=False), "", error or f"Loaded. {line}"

    def on_yes(name):
        yield gr.update(visible=False), f"Downloading, then {LOADING_MESSAGE[0].lower()}{LOADING_MESSAGE[1:]}"
        line, error = value_or_error(switch_model, app, name, True)
        yield gr.update(visible=False), error or f"Loaded. {line}"

    refresh: Event = {"fn": on_refresh, "inputs": None, "outputs": [hardware_line, table, name, status_line], **EVENT}
    tab.select(**refresh)
    load_events = (
        load.click(on_load, name, [question_column, question_line, status_line], **LOAD_EVENT),
        yes.click(on_yes, name, [question_column, status_line], **LOAD_EVENT),
    )
    for load_event in load_events:
        load_event.then(app.generation.describe_base, None, shared.base, **EVENT).then(**refresh)
    no.click(
        lambda: (gr.update(visible=False), "Nothing was downloaded."), None, [question_column, status_line], **EVENT
    )


def facts_html(app: App) -> str:
    """Make the loaded model's facts as HTML, all text escaped."""
    facts = model_facts(app.generation.base)
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in facts)}</dl>"


def choices_html(choices: Sequence[ModelChoice]) -> str:
    """Make a table of the models on offer."""
    head = "<tr><th>Model</th><th>Fits</th><th>Requirements</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(map(_row, choices))}</tbody></table>"


def _row(offer: ModelChoice) -> str:
    fits_text, css_class = {True: ("Yes", "good"), False: ("No", "bad"), None: ("Unknown", "maybe")}[offer.fits]
    title = f"<br>{escape(offer.title)}" if offer.title != offer.name else ""
    name = f"<td><code>{escape(offer.name)}</code>{title}</td>"
    return f"<tr>{name}<td class='{css_class}'>{fits_text}</td><td>{escape(offer.requirements)}</td></tr>"
