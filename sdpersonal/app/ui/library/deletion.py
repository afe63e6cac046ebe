"""Delete a concept, restore it, and empty the trash."""

from __future__ import annotations

import gradio as gr

from ...backend import App
from ...backend.error_text import value_or_error
from ...backend.library.concept_details import delete, deletion_question, empty_trash, list_deletions, undo_deletion
from ..components import EVENT, LibraryState, text_line, user_name

ONE, ALL = "Only this version", "All versions"


def delete_box(app: App, state: LibraryState) -> None:
    """Lay out the delete button with its confirmation, and the undo button."""
    library = app.workspace.library
    delete_button = gr.Button("Delete …", size="sm", visible=False, elem_id="delete")
    with gr.Column(visible=False, elem_id="delete-confirm", elem_classes="confirm") as confirm_column:
        question = text_line("")
        which = gr.Radio([ONE, ALL], value=ONE, label="Versions", visible=False, elem_id="delete-which")
        with gr.Row():
            confirm_button = gr.Button("Delete", variant="stop", size="sm", elem_id="delete-go")
            cancel_button = gr.Button("Cancel", size="sm", elem_id="delete-cancel")
    with gr.Row(elem_classes="heading"):
        message_line = text_line("", "delete-message", visible=False)
        undo_button = gr.Button("Undo", size="sm", scale=0, min_width=100, visible=False, elem_id="delete-undo")
    last = gr.State("")

    def on_ask(token, request: gr.Request):
        result, error = value_or_error(deletion_question, library, token, user_name(request) is not None)
        message, versions = result or (error, 1)
        return (
            gr.update(visible=True),
            message,
            gr.update(visible=versions > 1, value=ONE),
            gr.update(visible=bool(result)),
        )

    def on_delete(token, which, count):
        result, error = value_or_error(delete, library, token, which == ALL)
        message, name = result or (error, "")
        message, undo = gr.update(value=message, visible=True), gr.update(visible=bool(name))
        return gr.update(visible=False), message, undo, name, "" if result else token, count + bool(result)

    def on_undo(name, count):
        result, error = value_or_error(undo_deletion, library, name)
        message, token = result or (error, gr.skip())
        return gr.update(value=message, visible=True), gr.update(visible=not result), token, count + bool(result)

    delete_button.click(on_ask, state.chosen, [confirm_column, question, which, confirm_button], **EVENT)
    cancel_button.click(lambda: gr.update(visible=False), None, confirm_column, **EVENT)
    confirm_button.click(
        on_delete,
        [state.chosen, which, state.changes],
        [confirm_column, message_line, undo_button, last, state.chosen, state.changes],
        **EVENT,
    )
    undo_button.click(on_undo, [last, state.changes], [message_line, undo_button, state.chosen, state.changes], **EVENT)
    state.chosen.change(
        lambda token: (gr.update(visible=bool(token)), gr.update(visible=False)),
        state.chosen,
        [delete_button, confirm_column],
        **EVENT,
    )


def trash_box(app: App, tab: gr.Tab, state: LibraryState) -> None:
    """Lay out the trash: restoring deleted concepts and emptying it."""
    library = app.workspace.library
    with gr.Row(equal_height=False):
        deleted_choice = gr.Dropdown(
            [], label="Deleted in the last 30 days", allow_custom_value=True, scale=3, elem_id="trash-choice"
        )
        restore_button = gr.Button(
            "Restore", scale=0, min_width=130, elem_id="trash-restore", elem_classes="aligned-field"
        )
    message_line = text_line("", "trash-message")
    with gr.Row(elem_classes="heading"):
        confirm = gr.Checkbox(
            False, label="Delete everything for good", container=False, min_width=200, elem_id="trash-confirm"
        )
        empty_button = gr.Button(
            "Empty the trash", size="sm", scale=0, min_width=150, interactive=False, elem_id="trash-empty"
        )

    def on_refresh():
        deletions, error = value_or_error(list_deletions, library)
        names = [name for _, name in deletions or ()]
        return gr.update(choices=deletions or [], value=names[0] if names else None), error or gr.skip()

    def on_restore(name, count):
        result, error = value_or_error(undo_deletion, library, name)
        message, token = result or (error, gr.skip())
        return message, token, count + bool(result)

    def on_empty(confirm, count):
        result, error = value_or_error(empty_trash, library) if confirm is True else ("Tick the box first.", "")
        return result or error, False, count + 1

    state.refresh(tab, on_refresh, None, [deleted_choice, message_line])
    confirm.change(lambda confirm: gr.update(interactive=bool(confirm)), confirm, empty_button, **EVENT)
    restore_button.click(
        on_restore, [deleted_choice, state.changes], [message_line, state.chosen, state.changes], **EVENT
    )
    empty_button.click(on_empty, [confirm, state.changes], [message_line, confirm, state.changes], **EVENT)
