"""Delete a concept, restore it, and empty the trash."""

from __future__ import annotations

import gradio as gr

from ...backend import App
from ...backend.error_text import value_or_error
from ...backend.library.deletion import delete, deletion_question, empty_trash, list_deletions, undo_deletion
from ..shared import QUICK_EVENT, text_line, user_name

ONE, ALL = "Only this version", "All versions"


def delete_box(app: App, tab: gr.Tab, state) -> None:
    """Lay out the delete button with its confirmation, and the undo button."""
    library = app.workspace.library
    delete_button = gr.Button("Delete …", size="sm", visible=False, elem_id="delete")
    with gr.Column(visible=False, elem_id="delete-ask", elem_classes="ask") as confirm_column:
        question = text_line("")
        which = gr.Radio([ONE, ALL], value=ONE, label="Which", visible=False, elem_id="delete-which")
        with gr.Row():
            confirm_button = gr.Button("Delete", variant="stop", size="sm", elem_id="delete-go")
            cancel_button = gr.Button("Keep it", size="sm", elem_id="delete-keep")
    with gr.Row(elem_classes="heading"):
        message_line = text_line("", "deleted", visible=False)
        undo_button = gr.Button("Undo", size="sm", scale=0, min_width=100, visible=False, elem_id="undo")
    last = gr.State("")

    def on_ask(token, request: gr.Request):
        result, error = value_or_error(deletion_question, library, token, user_name(request) is not None)
        words, versions = result or (error, 1)
        return (
            gr.update(visible=True),
            words,
            gr.update(visible=versions > 1, value=ONE),
            gr.update(visible=bool(result)),
        )

    def on_delete(token, which, count):
        result, error = value_or_error(delete, library, token, which == ALL)
        words, name = result or (error, "")
        message, undo = gr.update(value=words, visible=True), gr.update(visible=bool(name))
        return gr.update(visible=False), message, undo, name, "" if result else token, count + bool(result)

    def on_undo(name, count):
        result, error = value_or_error(undo_deletion, library, name)
        words, token = result or (error, gr.skip())
        return gr.update(value=words, visible=True), gr.update(visible=not result), token, count + bool(result)

    delete_button.click(on_ask, state.chosen, [confirm_column, question, which, confirm_button], **QUICK_EVENT)
    cancel_button.click(lambda: gr.update(visible=False), None, confirm_column, **QUICK_EVENT)
    confirm_button.click(
        on_delete,
        [state.chosen, which, state.changes],
        [confirm_column, message_line, undo_button, last, state.chosen, state.changes],
        **QUICK_EVENT,
    )
    undo_button.click(
        on_undo, [last, state.changes], [message_line, undo_button, state.chosen, state.changes], **QUICK_EVENT
    )
    state.chosen.change(
        lambda token: (gr.update(visible=bool(token)), gr.update(visible=False)),
        state.chosen,
        [delete_button, confirm_column],
        **QUICK_EVENT,
    )


def trash_box(app: App, tab: gr.Tab, state) -> None:
    """Lay out the trash: restoring deleted concepts and emptying it."""
    library = app.workspace.library
    with gr.Row(equal_height=False):
        deleted_choice = gr.Dropdown(
            [], label="Deleted in the last 30 days", allow_custom_value=True, scale=3, elem_id="gone"
        )
        restore_button = gr.Button(
            "Bring back", scale=0, min_width=130, elem_id="bring-back", elem_classes="beside-field"
        )
    message_line = text_line("", "trash-said")
    with gr.Row(elem_classes="heading"):
        sure = gr.Checkbox(False, label="All of it may go for good", container=False, min_width=200, elem_id="sure")
        empty_button = gr.Button(
            "Empty the trash", size="sm", scale=0, min_width=150, interactive=False, elem_id="empty"
        )

    def on_look():
        deletions, error = value_or_error(list_deletions, library)
        names = [name for _, name in deletions or ()]
        return gr.update(choices=deletions or [], value=names[0] if names else None), error or gr.skip()

    def on_back(name, count):
        result, error = value_or_error(undo_deletion, library, name)
        words, token = result or (error, gr.skip())
        return words, token, count + bool(result)

    def on_empty(sure, count):
        result, error = value_or_error(empty_trash, library) if sure is True else ("Tick first that it may go.", "")
        return result or error, False, count + 1

    state.on(tab, both=False, fn=on_look, outputs=[deleted_choice, message_line])
    sure.change(lambda sure: gr.update(interactive=bool(sure)), sure, empty_button, **QUICK_EVENT)
    restore_button.click(
        on_back, [deleted_choice, state.changes], [message_line, state.chosen, state.changes], **QUICK_EVENT
    )
    empty_button.click(on_empty, [sure, state.changes], [message_line, sure, state.changes], **QUICK_EVENT)
