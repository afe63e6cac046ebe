"""Show, edit and rename the selected concept."""

from __future__ import annotations

from html import escape
from typing import get_args

import gradio as gr

from ....config import ConceptKind
from ...backend import App
from ...backend.error_text import value_or_error
from ...backend.library.concept_details import (
    CONSENT,
    LICENCES,
    ConceptDetails,
    concept_details,
    rename_all_versions,
    save_card,
)
from ..components import EVENT, GENERATE, LibraryState, SharedComponents, text_line

NO_CONCEPT = "<p class='none'>Click a concept to see its card.</p>"
FIELDS = ("title", "description", "kind", "class_noun", "license", "author", "prompts", "consent", "consent_note")


def details_box(app: App, shared: SharedComponents, tab: gr.Tab, state: LibraryState) -> gr.Column:
    """Lay out the card, and in the returned column the actions on an undamaged concept."""
    library = app.workspace.library
    card = gr.HTML(NO_CONCEPT, elem_id="card")
    error_line = text_line("", "card-error", visible=False)
    with gr.Column(visible=False) as column:
        versions = gr.Dropdown([], label="Version", visible=False, allow_custom_value=True, elem_id="version")
        with gr.Group():
            prompts = gr.Dropdown([], label="Prompts to try", allow_custom_value=True, elem_id="card-prompts")
            use = gr.Button("Use in Generate", size="sm", elem_id="card-use")
        with gr.Accordion("Edit the card", open=False, elem_id="edit-box"):
            fields = _card_fields()
            with gr.Row(elem_classes="heading"):
                save_button = gr.Button("Save", variant="primary", scale=0, min_width=110, elem_id="card-save")
                saved = text_line("", "card-saved")
        with gr.Accordion("Rename", open=False, elem_id="rename-box"):
            name = gr.Textbox(
                label="New name", placeholder="<me/duck>", max_lines=1, max_length=200, elem_id="new-name"
            )
            with gr.Row(elem_classes="heading"):
                rename_button = gr.Button("Rename", scale=0, min_width=110, elem_id="rename")
                renamed = text_line("", "renamed")

    def on_show(token, before):
        details, error = value_or_error(concept_details, library, token) if token else (None, "")
        if details and details == before:  # unchanged: keep what the user is typing
            return [gr.skip()] * len(shown)
        html = details_html(details) if details else NO_CONCEPT
        error_update, column_update = (
            gr.update(value=error, visible=bool(error)),
            gr.update(visible=bool(details and details.card)),
        )
        return html, error_update, column_update, details, *_choices(details), *_field_values(details, len(fields))

    def on_save(token, count, *values):
        saved_token, error = value_or_error(save_card, library, token, dict(zip(FIELDS, values, strict=True)))
        return error or "Saved.", count + bool(saved_token)

    def on_rename(token, new_name, count):
        renamed_token, error = value_or_error(rename_all_versions, library, token, new_name)
        return (
            error or f"Renamed to {renamed_token.unversioned()}.",
            str(renamed_token) if renamed_token else token,
            count + bool(renamed_token),
        )

    last = gr.State(None)
    shown = [card, error_line, column, last, versions, prompts, *fields]
    state.refresh(tab, on_show, [state.chosen, last], shown, on_choice=True)
    state.chosen.change(lambda: ("", "", ""), None, [saved, renamed, name], **EVENT)
    versions.input(lambda token: token or "", versions, state.chosen, **EVENT)
    use.click(lambda prompt: (prompt or "", gr.Tabs(selected=GENERATE)), prompts, [shared.prompt, shared.tabs], **EVENT)
    save_button.click(on_save, [state.chosen, state.changes, *fields], [saved, state.changes], **EVENT)
    gr.on(
        [rename_button.click, name.submit],
        on_rename,
        [state.chosen, name, state.changes],
        [renamed, state.chosen, state.changes],
        **EVENT,
    )
    return column


def details_html(details: ConceptDetails) -> str:
    """Make the card's HTML; all text of its author is escaped."""
    image = f"<img src='{escape(details.thumbnail)}' alt=''>" if details.thumbnail else ""
    title = f"<h3>{escape(details.title)}</h3>" if details.title else ""
    quality = "".join(f"<p class='quality'>{escape(sentence)}</p>" for sentence in details.quality)
    about = escape(details.card.description) if details.card else ""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in details.facts)
    head = f"<div><code>{escape(details.token)}</code>{title}<p>{about}</p>{quality}</div>"
    return f"<article><header>{image}{head}</header><dl>{facts}</dl></article>"


def _card_fields() -> list:
    """Make the card's fields, in the order of `FIELDS`."""
    title = gr.Textbox(label="Title", max_lines=1, max_length=100, elem_id="card-title")
    description = gr.Textbox(label="Description", lines=2, max_lines=8, max_length=2000)
    with gr.Row():
        kind = gr.Dropdown(list(get_args(ConceptKind)), label="Kind", min_width=130)
        noun = gr.Textbox(label="Class noun", placeholder="toy duck", max_lines=1, max_length=100, min_width=130)
    with gr.Row():
        choices = [(text, name) for name, text in LICENCES.items()]
        licence = gr.Dropdown(choices, label="Licence", allow_custom_value=True, min_width=130, elem_id="card-licence")
        author = gr.Textbox(label="Author", max_lines=1, max_length=100, min_width=130)
    prompts = gr.Textbox(label="Prompts to try, one a line", lines=2, max_lines=8, max_length=8200)
    with gr.Row():
        consent = gr.Dropdown(
            [(text, value) for value, text in CONSENT.items()], label="Consent of the person", min_width=130
        )
        note = gr.Textbox(label="Consent note: to what, and when", max_lines=2, max_length=500, min_width=130)
    return [title, description, kind, noun, licence, author, prompts, consent, note]


def _choices(details: ConceptDetails | None) -> tuple:
    if not details:
        return gr.skip(), gr.skip()
    versions_update = gr.update(choices=list(details.versions), value=details.token, visible=len(details.versions) > 1)
    return versions_update, gr.update(choices=list(details.prompts), value=next(iter(details.prompts), None))


def _field_values(details: ConceptDetails | None, count: int) -> list:
    if not details or not details.card:
        return [gr.skip()] * count
    values = {name: getattr(details.card, name) for name in FIELDS} | {"prompts": "\n".join(details.card.prompts)}
    return [values[name] for name in FIELDS]
