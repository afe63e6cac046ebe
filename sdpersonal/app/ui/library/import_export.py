"""Lay out the import of concept files dropped on the page, and the export for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

from ....display.units import format_bytes
from ...backend import App
from ...backend.error_text import value_or_error
from ...backend.library.import_export import (
    PROGRAMS,
    ExportDownload,
    ImportedFile,
    import_uploads,
    make_export_download,
)
from ..components import EVENT, EventOptions, LibraryState, session_id, text_line
from ..file_inputs import FileDrop

IMPORT_EVENT: EventOptions = {"concurrency_limit": 1, "show_progress": "full", "api_visibility": "private"}
IMPORT_HINT = "Embeddings and LoRAs of common programs: .safetensors, .pt, .bin, and embedding images of A1111."
SAME_NAME = {
    "refuse": "Do not import it",
    "versions": "Import it as a new version",
    "filenames": "Name it after its file",
}
STATUS_TITLES = {"imported": "Imported", "here already": "Already in the library", "refused": "Not imported"}


def import_box(app: App, state: LibraryState) -> None:
    """Lay out the file drop area and its options."""
    gr.Markdown(IMPORT_HINT)
    drop = FileDrop(
        label="Files",
        file_count="multiple",
        height=140,
        elem_id="import-drop",
    )
    with gr.Row(equal_height=True):
        name = gr.Textbox(label="Name", placeholder="<me/duck>; empty: as the file says", max_lines=1, min_width=150)
        replace = gr.Checkbox(
            False, label="Replace the concept with that name", min_width=150, elem_id="import-replace"
        )
        choices = [(text, name) for name, text in SAME_NAME.items()]
        duplicates = gr.Dropdown(
            choices, value="refuse", label="If the name is taken", min_width=150, elem_id="import-duplicates"
        )
    result_line = text_line("", "import-message")
    table = gr.HTML("", elem_id="import-results", elem_classes="table")

    def on_drop(paths, name, replace, duplicates, chosen, count, request: gr.Request):
        imported, error = value_or_error(
            import_uploads, app.workspace, session_id(request), paths, name, replace, duplicates
        )
        files = imported or []
        added = [file.token for file in files if file.token]
        message = error or f"{len(added)} of {len(files)} are in the library."
        selected = added[0] if added else chosen
        return None, message, imported_html(files), selected, count + bool(added), "" if added else gr.skip()

    inputs = [drop, name, replace, duplicates, state.chosen, state.changes]
    drop.upload(on_drop, inputs, [drop, result_line, table, state.chosen, state.changes, name], **IMPORT_EVENT)


def export_box(app: App, state: LibraryState) -> None:
    """Lay out the choice of a program, the download and its instructions."""
    with gr.Row(equal_height=False):
        choices = [(text, name) for name, text in PROGRAMS.items()]
        program = gr.Dropdown(
            choices, value="native", label="Program", scale=3, min_width=160, elem_id="export-program"
        )
        export_button = gr.Button("Export", scale=0, min_width=110, elem_id="export-go", elem_classes="aligned-field")
    error_line = text_line("", "export-error", visible=False)
    download = gr.DownloadButton("Download", visible=False, variant="primary", size="sm", elem_id="export-download")
    instructions = gr.HTML("", elem_id="export-steps")

    def on_make(token, program, request: gr.Request):
        exported, error = value_or_error(make_export_download, app.workspace, session_id(request), token, program)
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
            **EVENT,
        )


def imported_html(files: Sequence[ImportedFile]) -> str:
    """Make a table of the import results, one row a file."""
    if not files:
        return ""
    return f"<table><tbody>{''.join(map(_row, files))}</tbody></table>"


def instructions_html(exported: ExportDownload) -> str:
    """Make the instructions: where the files go and what to type, all text escaped."""
    places = "".join(f"<li><code>{escape(name)}</code> goes to {escape(to)}</li>" for name, to in exported.places)
    steps = "".join(f"<li>{escape(step)}</li>" for step in exported.steps)
    typed = (
        f"<p>Type <code>{escape(exported.typed)}</code></p>"
        if exported.typed
        else "<p>Its prompt needs no trigger word.</p>"
    )
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in exported.notes)
    return f"<ul>{places}</ul>{f'<ol>{steps}</ol>' if steps else ''}{typed}{notes}"


def _row(imported: ImportedFile) -> str:
    css_class = "good" if imported.token else "bad"
    status = f"<td class='{css_class}'>{STATUS_TITLES[imported.status]}</td>"
    return f"<tr><td>{escape(imported.name)}</td>{status}<td>{escape(imported.message)}</td></tr>"


def _label(exported: ExportDownload | None) -> str:
    return f"Download {exported.path.name} ({format_bytes(exported.path.stat().st_size)})" if exported else "Download"
