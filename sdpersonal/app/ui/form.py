"""Lay out the generation settings under the prompt, by their names in `GenerateRequest`."""

from __future__ import annotations

import random
from typing import Any

import gradio as gr

from ...config import MAX_CLIP_SKIP
from ..backend import App
from ..backend.generate.init_image import save_init_image
from ..backend.train.form import typed_number
from .shared import text_line

FRESH_SEEDS = 2**32  # larger seeds start from the same noise as one of these
_MAY_STAY_EMPTY = ("fast", "scheduler")  # None in a request, an empty text in the form


class GenerateForm:
    """The settings form. components: by field; `inputs`: for an event; `read`: converts their values to a request's
    fields."""

    def __init__(self, prompt: gr.Textbox):
        self.components: dict[str, gr.components.Component] = {"prompt": prompt}

    def settings(self, base) -> None:
        """Lay out the settings. base: the loaded model's facts, whose values are the defaults."""
        add = self.components
        add["negative"] = gr.Textbox(
            "", label="Negative prompt", lines=1, max_length=2000, info="What the picture should not be."
        )
        with gr.Row():
            add["n"] = gr.Slider(1, 16, value=4, step=1, label="Pictures", min_width=140)
            add["steps"] = gr.Slider(1, 150, value=25, step=1, label="Steps", min_width=140)
        with gr.Row():
            add["guidance"] = gr.Slider(1, 30, value=base.guidance, step=0.5, label="Guidance", min_width=140)
            default_size = f"{base.resolution}x{base.resolution}"
            add["size"] = gr.Textbox(default_size, label="Size", info="WIDTHxHEIGHT", min_width=140)
        with gr.Row():
            seed_info = "Same seed, same picture."
            # A text field, because JavaScript numbers lose digits of seeds above 2**53.
            add["seed"] = gr.Textbox(
                "0", label="Seed", info=seed_info, max_lines=1, max_length=20, min_width=140, elem_id="seed"
            )
            self.random_seed = gr.Checkbox(True, label="A new seed each time", min_width=140, elem_id="fresh")
        add["every"] = gr.Checkbox(
            False, label="Every alternative", info="Draws each choice of the prompt, so many pictures of each."
        )
        add["enlarge"] = gr.Slider(1, 4, value=1, step=0.25, label="Enlarge", info="A second pass draws it larger.")
        add["rescale"] = gr.Slider(
            0, 1, value=base.rescale, step=0.05, label="Rescale", info="Takes back contrast that guidance added."
        )
        add["scheduler"] = gr.Dropdown(
            [("The base's own", ""), *((name, name) for name in base.schedulers)],
            value="",
            label="Scheduler",
            info="How noise becomes a picture; any name of A1111, ComfyUI or diffusers may be typed.",
            allow_custom_value=True,
            filterable=True,
            elem_id="scheduler",
        )
        skips = "Layers of the text encoder, counted from the last: 1 skips none, many anime models want 2."
        add["clip_skip"] = gr.Slider(1, MAX_CLIP_SKIP, value=1, step=1, label="Clip skip", info=skips)
        add["fast"] = gr.Textbox(
            "", label="Fast", max_length=150, info="Token of an LCM or TCD LoRA of yours: 6 steps are enough then."
        )

    def start(self) -> None:
        """Lay out the init image and its mask."""
        text_line("Paint over a part to draw only that anew; paint nothing to change all of it.")
        self.editor = gr.ImageEditor(
            type="pil",
            sources=("upload", "clipboard"),
            label="Start picture",
            brush=gr.Brush(colors=["#00b3a4"], color_mode="fixed"),
            transforms=(),
            layers=False,
            canvas_size=(512, 512),
            elem_id="start",
        )
        self.components["change"] = gr.Slider(
            0.05, 1, value=0.6, step=0.05, label="Change", info="How much of it may become another."
        )

    @property
    def inputs(self) -> set[gr.components.Component]:
        return {*self.components.values(), self.random_seed, self.editor}

    def read(self, values: dict, app: App, page: str) -> dict[str, Any]:
        """Return a request's fields. Raises UserError for an unusable init image."""
        fields = {name: values[component] for name, component in self.components.items()}
        fields |= {name: fields[name] or None for name in _MAY_STAY_EMPTY}
        number = typed_number(fields["seed"])
        fields["seed"] = "" if number is None else number  # "" is refused by validation
        init_fields = save_init_image(app.workspace, page, values[self.editor])
        if init_fields:  # the init image keeps its own size
            fields |= {"size": None, "enlarge": 1.0}
        return fields | init_fields

    def updates(self, fields: dict[str, Any]) -> list:
        """Return updates for `components` in their order; fields that are missing, or None and not in
        `_MAY_STAY_EMPTY`, stay as they are."""
        fields = fields | {name: fields[name] or "" for name in _MAY_STAY_EMPTY if name in fields}
        fields = fields | {"seed": str(fields["seed"])} if "seed" in fields else fields
        values = [fields.get(name) for name in self.components]
        return [gr.skip() if value is None else gr.update(value=value) for value in values]


def random_seed() -> str:
    """Return a new random seed as text for the form."""
    return str(random.randrange(FRESH_SEEDS))
