"""Lay out the prompt, its presets, and the concepts to put in it."""

from __future__ import annotations

import gradio as gr

from ....errors import UserError
from ....prompts import MAX_STRENGTH
from ...backend import App
from ...backend.generate.concept_picker import concept_choices
from ...backend.generate.prompt_check import MAX_STRENGTHS, change_strength, check_prompt
from ...backend.generate.prompt_presets import PRESET_TITLES, fill_preset
from ...backend.generation_service import append_token
from ..shared import QUICK_EVENT, SharedComponents, text_line

NO_CONCEPTS = "No concepts yet. Make one from photos of something of yours: the tab beside this one."


def prompt_box(app: App, shared: SharedComponents) -> None:
    """Lay out the prompt, the note on it, and a strength slider for each concept in it."""
    shared.prompt.render()
    note = text_line("", "prompt-note", visible=False)
    tokens = gr.State(())
    with gr.Column(elem_id="strengths", visible=False) as strengths:
        sliders = [
            gr.Slider(-MAX_STRENGTH, MAX_STRENGTH, value=1, step=0.05, label="Strength", visible=False)
            for _ in range(MAX_STRENGTHS)
        ]

    def on_words(prompt):
        check = check_prompt(prompt, app.workspace, app.generation.base.kind)
        names = tuple(token for token, _ in check.strengths)
        note, box = gr.update(value=check.note, visible=bool(check.note)), gr.update(visible=bool(names))
        return note, names, box, *_strength_updates(check.strengths)

    shared.prompt.change(
        on_words, shared.prompt, [note, tokens, strengths, *sliders], trigger_mode="always_last", **QUICK_EVENT
    )
    for number, slider in enumerate(sliders):

        def on_slide(prompt, names, value, number=number):
            return change_strength(prompt, names[number], value) if number < len(names) else prompt

        slider.release(on_slide, [shared.prompt, tokens, slider], shared.prompt, **QUICK_EVENT)


def _strength_updates(strengths: tuple[tuple[str, float], ...]) -> list:
    """Return an update for each slider."""
    used = [gr.update(label=token, value=value, visible=True) for token, value in strengths]
    return used + [gr.update(visible=False)] * (MAX_STRENGTHS - len(strengths))


def presets_box(app: App, shared: SharedComponents) -> None:
    """Lay out the prompt presets."""
    choice = gr.Dropdown(
        PRESET_TITLES, value=None, label="Ready prompts", info="With your own concept in them.", elem_id="ready"
    )
    error_line = text_line("", visible=False)

    def on_choice(title, prompt):
        try:
            words = fill_preset(title, prompt, app.workspace.library, app.generation.base.kind)
        except UserError as error:
            return prompt, gr.update(value=str(error), visible=True)
        return words, gr.update(visible=False)

    choice.input(on_choice, [choice, shared.prompt], [shared.prompt, error_line], **QUICK_EVENT)


def concepts_box(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    """Lay out the library's concepts; a click appends one to the prompt."""
    with gr.Row(elem_classes="heading"):
        search = gr.Textbox(label="Concepts", placeholder="Search", scale=3, min_width=160, elem_id="concept-search")
    none_yet = text_line(NO_CONCEPTS, "none-yet", visible=False)
    concepts = gr.Gallery(
        show_label=False,
        label="Concepts",
        columns=4,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="concepts",
    )
    note = text_line("", "note", visible=False)
    words = gr.Textbox(visible="hidden", elem_id="tokens", label="All concepts")

    def on_look(search):
        choices = concept_choices(app.workspace, app.generation.base.kind, search)
        note, none = gr.update(value=choices.note, visible=bool(choices.note)), gr.update(visible=not choices.tokens)
        return choices.tiles, note, none, "\n".join(choices.tokens)

    def on_pick(prompt, chosen: gr.SelectData):
        return append_token(prompt, str(chosen.value["caption"])), gr.update(selected_index=None)

    look = {"fn": on_look, "inputs": search, "outputs": [concepts, note, none_yet, words]} | QUICK_EVENT
    shared.page.load(**look)
    tab.select(**look)
    search.change(trigger_mode="always_last", **look)
    concepts.select(on_pick, shared.prompt, [shared.prompt, concepts], **QUICK_EVENT)
