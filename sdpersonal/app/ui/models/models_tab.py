"""The Base tab: the model under the concepts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

from ...backend import App
from ...backend.error_text import value_or_error
from ...backend.models.hardware import Hardware
from ...backend.models.picker import ModelChoice, download_question, list_models, model_facts, switch_model
from ..shared import QUICK_EVENT, SharedComponents, text_line

FIXED_BASE = "Who started this app chose its base; it is the same for all who use it."
HUB_HINT = "Or write the name of another on the Hugging Face Hub: owner/name."
LOADING_MESSAGE = "Loading, as soon as nothing is being drawn …"
LOAD_EVENT = {"concurrency_limit": 1, "api_visibility": "private"}


def models_tab(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    gr.Markdown("### Loaded now")
    facts = gr.HTML("", elem_id="base-facts", elem_classes="facts")
    tab.select(lambda: facts_html(app), None, facts, **QUICK_EVENT)
    shared.base.change(lambda: facts_html(app), None, facts, **QUICK_EVENT)
    if app.fixed_base:
        gr.Markdown(FIXED_BASE)
    else:
        gr.Markdown("### Others")
        _choice_box(app, shared, tab)


def _choice_box(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    machine = text_line("", "machine")
    table = gr.HTML("", elem_id="offers", elem_classes="table")
    with gr.Row(equal_height=False):
        name = gr.Dropdown(
            [], label="Base", allow_custom_value=True, scale=3, min_width=180, elem_id="base-name", info=HUB_HINT
        )
        go = gr.Button(
            "Use it", variant="primary", scale=0, min_width=120, elem_id="base-go", elem_classes="beside-field"
        )
    with gr.Column(visible=False, elem_id="base-ask", elem_classes="ask") as asking:
        asked = text_line("", "base-asked")
        with gr.Row():
            yes = gr.Button("Fetch it and use it", variant="primary", size="sm", elem_id="base-yes")
            no = gr.Button("No", size="sm", elem_id="base-no")
    said = text_line("", "base-said")

    def on_look():
        found, trouble = value_or_error(list_models, app)
        here, _ = value_or_error(Hardware.here)
        update = gr.update(choices=[(each.label, each.name) for each in found or ()])
        return here.line() if here else "", choices_html(found or ()), update, trouble or gr.skip()

    def on_go(name):
        question, trouble = value_or_error(download_question, app, name)
        yield gr.update(visible=bool(question)), question or "", trouble or ("" if question else LOADING_MESSAGE)
        if question == "":
            line, trouble = value_or_error(switch_model, app, name)
            yield gr.update(visible=False), "", trouble or f"Loaded. {line}"

    def on_yes(name):
        yield gr.update(visible=False), f"Fetching, then {LOADING_MESSAGE[0].lower()}{LOADING_MESSAGE[1:]}"
        line, trouble = value_or_error(switch_model, app, name, True)
        yield gr.update(visible=False), trouble or f"Loaded. {line}"

    look = {"fn": on_look, "inputs": None, "outputs": [machine, table, name, said]} | QUICK_EVENT
    tab.select(**look)
    loads = (
        go.click(on_go, name, [asking, asked, said], **LOAD_EVENT),
        yes.click(on_yes, name, [asking, said], **LOAD_EVENT),
    )
    for done in loads:
        done.then(app.generation.describe_base, None, shared.base, **QUICK_EVENT).then(**look)
    no.click(lambda: (gr.update(visible=False), "Nothing was fetched."), None, [asking, said], **QUICK_EVENT)


def facts_html(app: App) -> str:
    """What there is to know of the base that is loaded, all of it as text."""
    found = model_facts(app.generation.base)
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in found)}</dl>"


def choices_html(found: Sequence[ModelChoice]) -> str:
    """A table of what can be chosen."""
    head = "<tr><th>Base</th><th>Fits</th><th>What it needs</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(map(_row, found))}</tbody></table>"


def _row(offer: ModelChoice) -> str:
    word, how = {True: ("Yes", "good"), False: ("No", "bad"), None: ("Perhaps", "maybe")}[offer.fits]
    title = f"<br>{escape(offer.title)}" if offer.title != offer.name else ""
    name = f"<td><code>{escape(offer.name)}</code>{title}</td>"
    return f"<tr>{name}<td class='{how}'>{word}</td><td>{escape(offer.requirements)}</td></tr>"
