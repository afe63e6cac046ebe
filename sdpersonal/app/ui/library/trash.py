"""Deleting a concept, and bringing back what was deleted."""

from __future__ import annotations

import gradio as gr

from ...backend import App
from ...backend.error_text import value_or_error
from ...backend.library.deletion import delete, deletion_question, empty_trash, list_deletions, undo_deletion
from ..shared import QUICK_EVENT, text_line, user_name

ONE, ALL = "Only this version", "All versions"


def delete_box(app: App, tab: gr.Tab, desk) -> None:
    """Lay out the question before a concept is deleted, and the way back after it."""
    library = app.workspace.library
    ask = gr.Button("Delete …", size="sm", visible=False, elem_id="delete")
    with gr.Column(visible=False, elem_id="delete-ask", elem_classes="ask") as asking:
        asked = text_line("")
        which = gr.Radio([ONE, ALL], value=ONE, label="Which", visible=False, elem_id="delete-which")
        with gr.Row():
            go = gr.Button("Delete", variant="stop", size="sm", elem_id="delete-go")
            keep = gr.Button("Keep it", size="sm", elem_id="delete-keep")
    with gr.Row(elem_classes="heading"):
        said = text_line("", "deleted", visible=False)
        back = gr.Button("Undo", size="sm", scale=0, min_width=100, visible=False, elem_id="undo")
    last = gr.State("")

    def on_ask(token, request: gr.Request):
        found, trouble = value_or_error(deletion_question, library, token, user_name(request) is not None)
        words, versions = found or (trouble, 1)
        return (
            gr.update(visible=True),
            words,
            gr.update(visible=versions > 1, value=ONE),
            gr.update(visible=bool(found)),
        )

    def on_delete(token, which, count):
        done, trouble = value_or_error(delete, library, token, which == ALL)
        words, name = done or (trouble, "")
        told, undo = gr.update(value=words, visible=True), gr.update(visible=bool(name))
        return gr.update(visible=False), told, undo, name, "" if done else token, count + bool(done)

    def on_undo(name, count):
        done, trouble = value_or_error(undo_deletion, library, name)
        words, token = done or (trouble, gr.skip())
        return gr.update(value=words, visible=True), gr.update(visible=not done), token, count + bool(done)

    ask.click(on_ask, desk.chosen, [asking, asked, which, go], **QUICK_EVENT)
    keep.click(lambda: gr.update(visible=False), None, asking, **QUICK_EVENT)
    go.click(
        on_delete,
        [desk.chosen, which, desk.changes],
        [asking, said, back, last, desk.chosen, desk.changes],
        **QUICK_EVENT,
    )
    back.click(on_undo, [last, desk.changes], [said, back, desk.chosen, desk.changes], **QUICK_EVENT)
    desk.chosen.change(
        lambda token: (gr.update(visible=bool(token)), gr.update(visible=False)),
        desk.chosen,
        [ask, asking],
        **QUICK_EVENT,
    )


def trash_box(app: App, tab: gr.Tab, desk) -> None:
    """Lay out everything that was deleted."""
    library = app.workspace.library
    with gr.Row(equal_height=False):
        gone = gr.Dropdown([], label="Deleted in the last 30 days", allow_custom_value=True, scale=3, elem_id="gone")
        back = gr.Button("Bring back", scale=0, min_width=130, elem_id="bring-back", elem_classes="beside-field")
    said = text_line("", "trash-said")
    with gr.Row(elem_classes="heading"):
        sure = gr.Checkbox(False, label="All of it may go for good", container=False, min_width=200, elem_id="sure")
        out = gr.Button("Empty the trash", size="sm", scale=0, min_width=150, interactive=False, elem_id="empty")

    def on_look():
        found, trouble = value_or_error(list_deletions, library)
        names = [name for _, name in found or ()]
        return gr.update(choices=found or [], value=names[0] if names else None), trouble or gr.skip()

    def on_back(name, count):
        done, trouble = value_or_error(undo_deletion, library, name)
        words, token = done or (trouble, gr.skip())
        return words, token, count + bool(done)

    def on_empty(sure, count):
        done, trouble = value_or_error(empty_trash, library) if sure is True else ("Tick first that it may go.", "")
        return done or trouble, False, count + 1

    desk.on(tab, both=False, fn=on_look, outputs=[gone, said])
    sure.change(lambda sure: gr.update(interactive=bool(sure)), sure, out, **QUICK_EVENT)
    back.click(on_back, [gone, desk.changes], [said, desk.chosen, desk.changes], **QUICK_EVENT)
    out.click(on_empty, [sure, desk.changes], [said, sure, desk.changes], **QUICK_EVENT)
