"""Lay out the import of concept files dropped on the page, and the export for other programs."""

from __future__ import annotations

from html import escape

import gradio as gr

from ....units import format_bytes
from ...backend import App
from ...backend.error_text import value_or_error
from ...backend.library.import_export import (
    PROGRAMS,
    ExportDownload,
    ImportedFile,
    import_uploads,
    make_export_download,
)
from ..shared import QUICK_EVENT, text_line

IMPORT_EVENT = {"concurrency_limit": 1, "api_visibility": "private"}
IMPORT_HINT = (
    "Embeddings and LoRAs of any common program: .safetensors, .pt, .bin, and pictures of A1111's that hold one."
)
SAME_NAME = {"refuse": "do not add it", "versions": "add it as a version", "filenames": "call it as its file"}
STATUS_TITLES = {"imported": "Added", "here already": "Was here already", "refused": "Not added"}


def import_box(app: App, state) -> None:
    """Lay out the file drop area and its options."""
    gr.Markdown(IMPORT_HINT)
    drop = gr.File(
        label="Files",
        file_count="multiple",
        height=140,
        elem_id="drop",
    )
    with gr.Row(equal_height=True):
        name = gr.Textbox(
            label="Call it", placeholder="<me/duck>; otherwise as the file says", max_lines=1, min_width=150
        )
        replace = gr.Checkbox(False, label="Take the place of what has that name", min_width=150, elem_id="replace")
        choices = [(text, name) for name, text in SAME_NAME.items()]
        duplicates = gr.Dropdown(
            choices, value="refuse", label="If its name is taken", min_width=150, elem_id="duplicates"
        )
    result_line = text_line("", "import-said")
    table = gr.HTML("", elem_id="arrivals", elem_classes="table")

    def on_drop(paths, name, replace, duplicates, chosen, count, request: gr.Request):
        imported, error = value_or_error(
            import_uploads, app.workspace, request.session_hash, paths, name, replace, duplicates
        )
        added = [file.token for file in imported or () if file.token]
        message = error or f"{len(added)} of {len(imported)} are in the library."
        selected = added[0] if added else chosen
        return None, message, imported_html(imported or ()), selected, count + bool(added), "" if added else gr.skip()

    inputs = [drop, name, replace, duplicates, state.chosen, state.changes]
    drop.upload(on_drop, inputs, [drop, result_line, table, state.chosen, state.changes, name], **IMPORT_EVENT)


def export_box(app: App, state) -> None:
    """Lay out the choice of a program, the download and its instructions."""
    with gr.Row(equal_height=False):
        choices = [(text, name) for name, text in PROGRAMS.items()]
        program = gr.Dropdown(choices, value="native", label="Program", scale=3, min_width=160, elem_id="program")
        export_button = gr.Button("Make", scale=0, min_width=110, elem_id="make-parcel", elem_classes="beside-field")
    error_line = text_line("", "export-said", visible=False)
    download = gr.DownloadButton("Download", visible=False, variant="primary", size="sm", elem_id="load-parcel")
    instructions = gr.HTML("", elem_id="how")

    def on_make(token, program, request: gr.Request):
        exported, error = value_or_error(make_export_download, app.workspace, request.session_hash, token, program)
        download_update = gr.update(
            value=exported and str(exported.path), label=_label(exported), visible=bool(exported)
        )
        return (
            download_update,
            instructions_html(exported) if exported else "",
            gr.update(value=error, visible=bool(error)),
        )

    export_button.click(on_make, [state.chosen, program], [download, instructions, error_line], **IMPORT_EVENT)
    for event in (state.chosen.change, program.input):
        event(
            lambda: (gr.update(visible=False, value=None), "", ""),
            None,
            [download, instructions, error_line],
            **QUICK_EVENT,
        )


def imported_html(came) -> str:
    """Make a table of the import results, one row a file."""
    if not came:
        return ""
    return f"<table><tbody>{''.join(map(_row, came))}</tbody></table>"


def instructions_html(made: ExportDownload) -> str:
    """Make the instructions: where the files go and what to type, all text escaped."""
    places = "".join(f"<li><code>{escape(name)}</code> goes to {escape(to)}</li>" for name, to in made.places)
    steps = "".join(f"<li>{escape(step)}</li>" for step in made.steps)
    typed = f"<p>Type <code>{escape(made.typed)}</code></p>" if made.typed else "<p>Nothing has to be typed.</p>"
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in made.notes)
    return f"<ul>{places}</ul>{f'<ol>{steps}</ol>' if steps else ''}{typed}{notes}"


def _row(imported: ImportedFile) -> str:
    css_class = "good" if imported.token else "bad"
    status = f"<td class='{css_class}'>{STATUS_TITLES[imported.status]}</td>"
    return f"<tr><td>{escape(imported.name)}</td>{status}<td>{escape(imported.message)}</td></tr>"


def _label(made: ExportDownload | None) -> str:
    return f"Download {made.path.name} ({format_bytes(made.path.stat().st_size)})" if made else "Download"
