"""Lay out the comparison of two concepts or versions, and the check for conflicts between several."""

from __future__ import annotations

from html import escape

import gradio as gr

from ...backend import App
from ...backend.error_text import value_or_error
from ...backend.library.comparison import MAX_CONCEPTS, Comparison, check_conflicts, compare_concepts
from ...backend.library.concept_details import token_choices
from ..components import EventOptions, LibraryState, text_line

COMPARE_EVENT: EventOptions = {"concurrency_limit": 2, "show_progress": "full", "api_visibility": "private"}


def comparison_box(app: App, tab: gr.Tab, state: LibraryState) -> None:
    """Lay out the choice of two concepts and their comparison."""
    with gr.Row(equal_height=False):
        first_choice = gr.Dropdown(
            [], label="First concept", allow_custom_value=True, min_width=150, elem_id="compare-first"
        )
        second_choice = gr.Dropdown(
            [], label="Second concept", allow_custom_value=True, min_width=150, elem_id="compare-second"
        )
        go = gr.Button("Compare", scale=0, min_width=130, elem_id="compare-go", elem_classes="aligned-field")
    error_line = text_line("", "compare-error", visible=False)
    table = gr.HTML("", elem_id="comparison", elem_classes="table")

    def on_choices(token):
        (tokens, first, second), _ = token_choices(app.workspace.library, token)
        return gr.update(choices=tokens, value=first), gr.update(choices=tokens, value=second)

    def on_compare(first, second):
        comparison, error = value_or_error(compare_concepts, app.workspace.library, first, second)
        return comparison_html(comparison) if comparison else "", gr.update(value=error, visible=bool(error))

    state.refresh(tab, on_choices, state.chosen, [first_choice, second_choice], on_choice=True)
    go.click(on_compare, [first_choice, second_choice], [table, error_line], **COMPARE_EVENT)


def conflicts_box(app: App, tab: gr.Tab, state: LibraryState) -> None:
    """Lay out the choice of several concepts and their conflicts."""
    with gr.Row(equal_height=False):
        several = gr.Dropdown(
            [],
            multiselect=True,
            max_choices=MAX_CONCEPTS,
            label=f"Two to {MAX_CONCEPTS} concepts for one prompt",
            allow_custom_value=True,
            min_width=150,
            elem_id="check",
        )
        go = gr.Button("Check", scale=0, min_width=130, elem_id="check-go", elem_classes="aligned-field")
    result_line = text_line("", "check-result", max_lines=12)

    def on_choices():
        _, newest = token_choices(app.workspace.library, "")
        return gr.update(choices=newest)

    def on_check(tokens):
        conflicts, error = value_or_error(check_conflicts, app.workspace.library, tokens)
        return conflicts or error

    state.refresh(tab, on_choices, None, several)
    go.click(on_check, several, result_line, **COMPARE_EVENT)


def comparison_html(comparison: Comparison) -> str:
    """Make a table of both concepts, differences in bold; all their text is escaped."""
    names = "".join(f"<th>{_image_html(src)}<code>{escape(name)}</code></th>" for name, src in _pairs(comparison))
    rows = "".join(
        f"<tr{' class=differs' * (first != second)}><th>{escape(name)}</th><td>{escape(first) or '–'}</td>"
        f"<td>{escape(second) or '–'}</td></tr>"
        for name, first, second in comparison.rows
    )
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in comparison.sentences)
    return f"{sentences}<table><thead><tr><th></th>{names}</tr></thead><tbody>{rows}</tbody></table>"


def _pairs(comparison: Comparison):
    return zip(comparison.tokens, comparison.thumbnails, strict=True)


def _image_html(src: str) -> str:
    return f"<img src='{escape(src)}' alt=''>" if src else ""
