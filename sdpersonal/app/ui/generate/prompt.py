"""Lay out the prompt, its presets, and the concepts to put in it."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from ....errors import UserError
from ....prompts import MAX_STRENGTH
from ...backend import App
from ...backend.generate.prompt import (
    ANYWHERE,
    MAX_STRENGTHS,
    OWN_BOX,
    PRESET_TITLES,
    REGION_CHOICES,
    append_token,
    change_region,
    change_strength,
    check_prompt,
    concept_choices,
    fill_preset,
    subject_regions,
)
from ..components import EVENT, Event, SharedComponents, text_line, thumbnails

NO_CONCEPTS = "No concepts yet. Train one on your own photos: see the Train tab."


def prompt_box(app: App, shared: SharedComponents) -> None:
    """Lay out the prompt, the note on it, and a strength slider for each concept, and for a subject its place."""
    shared.prompt.render()
    note = text_line("", "prompt-note", visible=False)
    tokens = gr.State(())
    with gr.Column(elem_id="strengths", visible=False) as strengths:
        concepts = [_concept_row(number) for number in range(MAX_STRENGTHS)]
    rows, sliders, regions = zip(*concepts, strict=True)

    def on_prompt(prompt):
        check = check_prompt(prompt, app.workspace, app.generation.base.kind)
        names = tuple(token for token, _ in check.strengths)
        note, box = gr.update(value=check.note, visible=bool(check.note)), gr.update(visible=bool(names))
        places = subject_regions(prompt, names, app.workspace.library) if names else ()
        updates = *_row_updates(len(names)), *_strength_updates(check.strengths), *_region_updates(places)
        return note, names, box, *updates

    shared.prompt.change(on_prompt, shared.prompt, [note, tokens, strengths, *rows, *sliders, *regions], **EVENT)
    for number, (slider, region) in enumerate(zip(sliders, regions, strict=True)):

        def on_slide(prompt, names, value, number=number):
            return change_strength(prompt, names[number], value) if number < len(names) else prompt

        def on_region(prompt, names, value, number=number):
            return change_region(prompt, names[number], value) if number < len(names) else prompt

        slider.release(on_slide, [shared.prompt, tokens, slider], shared.prompt, **EVENT)
        region.input(on_region, [shared.prompt, tokens, region], shared.prompt, **EVENT)


def _concept_row(number: int) -> tuple[gr.Row, gr.Slider, gr.Dropdown]:
    """Lay out the strength and the place of one concept."""
    with gr.Row(equal_height=True, visible=False) as row:
        slider = gr.Slider(-MAX_STRENGTH, MAX_STRENGTH, value=1, step=0.05, label="Strength", scale=3, min_width=200)
        region = gr.Dropdown(
            list(REGION_CHOICES),
            value=ANYWHERE,
            label="Place",
            visible=False,
            scale=1,
            min_width=150,
            elem_id=f"region-{number}",
        )
    return row, slider, region


def _row_updates(count: int) -> list:
    """Return an update for each row: only those of concepts are seen."""
    return [gr.update(visible=number < count) for number in range(MAX_STRENGTHS)]


def _strength_updates(strengths: tuple[tuple[str, float], ...]) -> list:
    """Return an update for each slider."""
    used = [gr.update(label=token, value=value) for token, value in strengths]
    return used + [gr.skip()] * (MAX_STRENGTHS - len(strengths))


def _region_updates(places: Sequence[str | None]) -> list:
    """Return an update for each choice of a place."""
    choices = {place: [name for name in REGION_CHOICES if name != OWN_BOX or place == OWN_BOX] for place in places}
    used = [
        gr.update(visible=False) if place is None else gr.update(choices=choices[place], value=place, visible=True)
        for place in places
    ]
    return used + [gr.update(visible=False)] * (MAX_STRENGTHS - len(used))


def presets_box(app: App, shared: SharedComponents) -> None:
    """Lay out the prompt presets."""
    choice = gr.Dropdown(
        PRESET_TITLES, value=None, label="Prompt presets", info="Filled in with your own concept.", elem_id="presets"
    )
    error_line = text_line("", visible=False)

    def on_preset(title, prompt):
        try:
            filled = fill_preset(title, prompt, app.workspace.library, app.generation.base.kind)
        except UserError as error:
            return prompt, gr.update(value=str(error), visible=True)
        return filled, gr.update(visible=False)

    choice.input(on_preset, [choice, shared.prompt], [shared.prompt, error_line], **EVENT)


def concepts_box(app: App, shared: SharedComponents, tab: gr.Tab) -> None:
    """Lay out the library's concepts; a click appends one to the prompt."""
    with gr.Row(elem_classes="heading"):
        search = gr.Textbox(label="Concepts", placeholder="Search", scale=3, min_width=160, elem_id="concept-search")
    no_concepts = text_line(NO_CONCEPTS, "no-concepts", visible=False)
    concepts = thumbnails("Concepts", "concepts")
    note = text_line("", "note", visible=False)
    token_list = gr.Textbox(visible="hidden", elem_id="tokens", label="All concepts")

    def on_refresh(search):
        choices = concept_choices(app.workspace, app.generation.base.kind, search)
        note, no_concepts = (
            gr.update(value=choices.note, visible=bool(choices.note)),
            gr.update(visible=not choices.tokens),
        )
        return choices.tiles, note, no_concepts, "\n".join(choices.tokens)

    def on_concept(prompt, chosen: gr.SelectData):
        return append_token(prompt, str(chosen.value["caption"])), gr.update(selected_index=None)

    refresh: Event = {"fn": on_refresh, "inputs": search, "outputs": [concepts, note, no_concepts, token_list], **EVENT}
    shared.page.load(**refresh)
    tab.select(**refresh)
    search.change(**refresh)
    concepts.select(on_concept, shared.prompt, [shared.prompt, concepts], **EVENT)
