"""The Generate tab: a prompt and the concepts to put in it on one side, the pictures on the other."""

from __future__ import annotations

import random

import gradio as gr

from ..service import App
from ..service.drawing import IDLE, insert
from ..service.shelf import shelf
from .shared import QUICK, Shared

NO_CONCEPTS = """**No concepts yet.** Teach one from photos of it, then press *Look again*:

    python train_dreambooth.py --photos DIR --token '<me/duck>' --class 'toy duck'
"""


def generate_tab(app: App, shared: Shared, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    studio, page, prompt = app.studio, shared.page, shared.prompt
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            draw, stop = _prompt(prompt)
            none_yet, concepts, note, again = _concepts()
            settings, fresh = _settings(studio.base)
        with gr.Column(scale=5, min_width=320):
            status, pictures, recipe = _results()
    recipes = gr.State(())

    def on_look():
        found = shelf(app.house.library, studio.base.kind)
        return (
            gr.update(value=found.tiles, visible=bool(found.tiles)),
            gr.update(value=found.note, visible=bool(found.note)),
            gr.update(visible=not found.tiles),
        )

    def on_draw(prompt, negative, n, steps, guidance, size, seed, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        form = {"prompt": prompt, "negative": negative, "n": n, "steps": steps, "guidance": guidance, "size": size}
        for sheet in studio.draw(form | {"seed": seed}, request.session_hash):
            progress(sheet.done, desc=sheet.message)
            shown = (list(sheet.pictures), sheet.recipes) if sheet.pictures else (gr.skip(), gr.skip())
            yield *shown, sheet.message

    def on_pick(prompt, chosen: gr.SelectData):
        return insert(prompt, chosen.value["caption"]), gr.update(selected_index=None)

    def on_look_closer(recipes, chosen: gr.SelectData):
        return gr.update(value=recipes[chosen.index] if chosen.index < len(recipes) else "", visible=True)

    def on_stop(request: gr.Request):
        studio.stop(request.session_hash)

    look = {"fn": on_look, "outputs": [concepts, note, none_yet]} | QUICK
    page.load(**look)
    again.click(**look)
    concepts.select(on_pick, prompt, [prompt, concepts], **QUICK)
    fresh.click(lambda: random.randrange(2**32), None, settings[-1], **QUICK)
    starts = [draw.click, prompt.submit]
    gr.on(starts, lambda: gr.update(visible=False), None, recipe, **QUICK)  # it is of a picture that is leaving
    gr.on(
        starts,
        on_draw,
        [prompt, *settings],
        [pictures, recipes, status],
        show_progress_on=pictures,
        trigger_mode="once",
        api_visibility="private",
        concurrency_id="device",
    )
    stop.click(on_stop, **QUICK)
    page.unload(on_stop)
    pictures.select(on_look_closer, recipes, recipe, **QUICK)


def _prompt(prompt):
    prompt.render()
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", scale=3, min_width=120, elem_id="draw")
        stop = gr.Button("Stop", scale=1, min_width=80, elem_id="stop")
    return draw, stop


def _concepts():
    with gr.Row(elem_classes="heading"):
        gr.Markdown("### Concepts")
        again = gr.Button("Look again", size="sm", scale=0, min_width=110, elem_id="again")
    none_yet = gr.Markdown(NO_CONCEPTS, visible=False, elem_id="none-yet")
    concepts = gr.Gallery(
        show_label=False,
        columns=4,
        object_fit="cover",
        allow_preview=False,
        visible=False,
        interactive=False,
        buttons=[],
        elem_id="concepts",
    )
    note = gr.Textbox(
        show_label=False, container=False, interactive=False, visible=False, elem_id="note", elem_classes="line"
    )
    return none_yet, concepts, note, again


def _results():
    status = gr.Textbox(
        IDLE,
        show_label=False,
        container=False,
        lines=1,
        max_lines=4,
        interactive=False,
        elem_id="status",
        elem_classes="line",
    )
    pictures = gr.Gallery(
        show_label=False,
        columns=2,
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id="pictures",
    )
    recipe = gr.Textbox(
        label="Recipe",
        visible=False,
        lines=8,
        max_lines=20,
        interactive=False,
        buttons=["copy"],
        elem_id="recipe",
    )
    return status, pictures, recipe


def _settings(base):
    """The settings in the order of `on_draw`'s arguments, seed last, and the button that draws a new seed."""
    own = f"{base.resolution}x{base.resolution}"
    with gr.Accordion("Settings", open=False):
        negative = gr.Textbox(
            "", label="Negative prompt", lines=1, max_length=2000, info="What the picture should not be."
        )
        with gr.Row():
            n = gr.Slider(1, 16, value=4, step=1, label="Pictures", min_width=140)
            steps = gr.Slider(1, 150, value=25, step=1, label="Steps", min_width=140)
        with gr.Row():
            guidance = gr.Slider(1, 30, value=base.guidance, step=0.5, label="Guidance", min_width=140)
            size = gr.Textbox(own, label="Size", info="WIDTHxHEIGHT", min_width=140)
        with gr.Row():
            seed = gr.Number(0, label="Seed", info="Same seed, same picture.", min_width=140, elem_id="seed")
            fresh = gr.Button("New seed", size="sm", min_width=140)
    return [negative, n, steps, guidance, size, seed], fresh
