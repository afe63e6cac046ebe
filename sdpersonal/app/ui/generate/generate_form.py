"""Lay out the generation settings under the prompt, by their names in `GenerateRequest`."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.blocks import Block

from ....config import MAX_CLIP_SKIP
from ...backend import App
from ...backend.generate.generate_form import form_values, request_fields
from ..components import text_line
from ..file_inputs import InitImageEditor


class GenerateForm:
    """The settings form. components: by field; `inputs`: for an event; `read`: converts their values to a request's
    fields."""

    def __init__(self, prompt: gr.Textbox):
        self.components: dict[str, gr.components.Component] = {"prompt": prompt}

    def settings(self, base) -> None:
        """Lay out the settings. base: the loaded model's facts, whose values are the defaults."""
        add = self.components
        add["negative"] = gr.Textbox(
            "", label="Negative prompt", lines=1, max_length=2000, info="What the image should not show."
        )
        with gr.Row():
            add["num_images"] = gr.Slider(1, 16, value=4, step=1, label="Images", min_width=140)
            add["steps"] = gr.Slider(1, 150, value=25, step=1, label="Steps", min_width=140)
        with gr.Row():
            add["guidance"] = gr.Slider(1, 30, value=base.guidance, step=0.5, label="Guidance scale", min_width=140)
            default_size = f"{base.resolution}x{base.resolution}"
            add["size"] = gr.Textbox(default_size, label="Size", info="WIDTHxHEIGHT", min_width=140)
        with gr.Row():
            seed_info = "The same seed gives the same image."
            # A text field, because JavaScript numbers lose digits of seeds above 2**53.
            add["seed"] = gr.Textbox(
                "0", label="Seed", info=seed_info, max_lines=1, max_length=20, min_width=140, elem_id="seed"
            )
            self.random_seed = gr.Checkbox(True, label="New seed each time", min_width=140, elem_id="random-seed")
        add["all_combinations"] = gr.Checkbox(
            False, label="All combinations", info="Of the alternatives in the prompt, with that many images each."
        )
        composing = "Guides styles by themselves and gives each subject its place; off: all concepts in one prediction."
        add["compose"] = gr.Checkbox(True, label="Compose", info=composing)
        add["hires_scale"] = gr.Slider(
            1, 4, value=1, step=0.25, label="Hires scale", info="Upscale factor of a second pass (hires fix)."
        )
        add["rescale"] = gr.Slider(
            0,
            1,
            value=base.rescale,
            step=0.05,
            label="Guidance rescale",
            info="Reduces the contrast that guidance adds.",
        )
        add["scheduler"] = gr.Dropdown(
            [("The model's default", ""), *((name, name) for name in base.schedulers)],
            value="",
            label="Scheduler",
            info="Any name of A1111, ComfyUI or diffusers can be typed.",
            allow_custom_value=True,
            filterable=True,
            elem_id="scheduler",
        )
        skips = "Layer of the text encoder, counted from the last: 1 skips none; many anime models want 2."
        add["clip_skip"] = gr.Slider(1, MAX_CLIP_SKIP, value=1, step=1, label="Clip skip", info=skips)
        add["fast"] = gr.Textbox(
            "", label="Fast LoRA", max_length=150, info="Token of an LCM or TCD LoRA: 6 steps are then enough."
        )

    def init_image(self) -> None:
        """Lay out the init image and its mask."""
        text_line("Paint over the part to regenerate (inpainting); paint nothing to change the whole image.")
        self.editor = InitImageEditor(
            sources=("upload", "clipboard"),
            label="Init image",
            brush=gr.Brush(colors=["#00b3a4"], color_mode="fixed"),
            transforms=(),
            layers=False,
            canvas_size=(512, 512),
            elem_id="init-image",
        )
        self.components["strength"] = gr.Slider(
            0.05, 1, value=0.6, step=0.05, label="Denoising strength", info="How much of the init image may change."
        )

    @property
    def inputs(self) -> set[Block]:
        return {*self.components.values(), self.random_seed, self.editor}

    def read(self, values: dict, app: App, page: str) -> dict[str, Any]:
        """Return a request's fields. Raises UserError for an unusable init image."""
        form = {name: values[component] for name, component in self.components.items()}
        return request_fields(form, values[self.editor], app.workspace, page)

    def updates(self, fields: dict[str, Any]) -> list:
        """Return updates for `components` in their order; missing fields stay as they are."""
        shown = form_values(fields)
        values = [shown.get(name) for name in self.components]
        return [gr.skip() if value is None else gr.update(value=value) for value in values]
