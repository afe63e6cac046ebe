"""Lay out the training form: the concept's name, the training settings, and the summary of what Start does."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ...backend.train.train_form import KINDS, METHODS, PRIORS, parse_kind
from ...backend.train.train_page import TrainPage
from ..components import EVENT, SharedComponents, session_id, text_line, user_name

KIND, METHOD, PRIOR = next(iter(KINDS)), next(iter(METHODS)), next(iter(PRIORS))
OBJECT_EXAMPLE, PERSON_EXAMPLE, STYLE_EXAMPLE = (
    "for example: toy duck",
    "for example: woman",
    "for example: watercolour",
)


FormField = gr.Textbox | gr.Radio | gr.Checkbox


@dataclass(frozen=True)
class TrainForm:
    """The form's fields by name. noun: the class noun's; `inputs`: components for an event; `read`: its values by field
    name."""

    components: dict[str, FormField]
    noun: gr.Textbox

    @property
    def inputs(self) -> list[FormField]:
        return list(self.components.values())

    def read(self, values: tuple) -> dict:
        return dict(zip(self.components, values, strict=True))


def form_box(owner: str) -> tuple[TrainForm, gr.Textbox]:
    """Lay out the fields and the note on the name; return both. owner: the default owner."""
    components: dict[str, FormField] = {}
    components["kind"] = gr.Radio(list(KINDS), value=KIND, label="What do the photos share?", elem_id="train-kind")
    components["noun"] = noun = gr.Textbox(
        label="Class noun",
        placeholder=OBJECT_EXAMPLE,
        max_length=100,
        elem_id="train-noun",
        lines=1,
        info="What it is, in the most ordinary word or two.",
    )
    with gr.Row():
        components["owner"] = gr.Textbox(
            owner, label="Owner", max_length=64, max_lines=1, scale=1, min_width=110, elem_id="train-owner"
        )
        components["name"] = gr.Textbox(
            label="Concept name",
            placeholder="my-cat",
            max_length=64,
            max_lines=1,
            scale=2,
            min_width=140,
            elem_id="train-name",
        )
    note = text_line("", "train-name-note")
    components["agrees"] = gr.Checkbox(
        label="This person agrees to images of them being generated", visible=False, elem_id="train-consent"
    )
    with gr.Accordion("Advanced", open=False, elem_id="train-advanced"):
        _advanced_fields(components)
    return TrainForm(components, noun), note


def _advanced_fields(components: dict[str, FormField]) -> None:
    components["method"] = gr.Radio(list(METHODS), value=METHOD, label="Method")
    components["crop"] = gr.Checkbox(label="Crop each photo around its subject, not at its centre")
    components["flip"] = gr.Checkbox(label="Also train on mirrored photos (not for faces or writing)")
    components["early_stop"] = gr.Checkbox(True, label="Stop when the loss has converged")
    components["text_encoder"] = gr.Checkbox(label="Train the text encoder too: closer, but mixes worse")
    components["prior"] = gr.Radio(
        list(PRIORS),
        value=PRIOR,
        label="Prior preservation",
        info="Keeps the class as the model knows it; a step then takes twice as long.",
    )
    with gr.Row():
        components["steps"] = _number_field("Max steps", "automatic", "train-steps")
        components["lr"] = _number_field("Learning rate", "automatic", "train-lr")
    with gr.Row():
        components["rank"] = _number_field("LoRA rank", "16", "train-rank")
        components["resolution"] = _number_field("Resolution", "the model's own", "train-resolution")
        components["seed"] = _number_field("Seed", "0", "train-seed")


def _number_field(label: str, placeholder: str, name: str) -> gr.Textbox:
    """Make a text field for a number, since Gradio's number fields cannot be empty."""
    return gr.Textbox(label=label, placeholder=placeholder, max_lines=1, max_length=20, min_width=110, elem_id=name)


def connect_form(
    train_page: TrainPage, shared: SharedComponents, fields: TrainForm, note, plan, photos_changed: list
) -> None:
    """Check the name and update the summary whenever something they depend on changes."""
    components = fields.components

    def on_kind(kind):
        person, style = parse_kind(kind) == "person", parse_kind(kind) == "style"
        example = STYLE_EXAMPLE if style else PERSON_EXAMPLE if person else OBJECT_EXAMPLE
        return gr.update(placeholder=example), gr.update(visible=person)

    def on_change(request: gr.Request, *values):
        form = fields.read(values)
        return train_page.name_note(form), train_page.plan_text(session_id(request), user_name(request), form)

    def on_open(owner, request: gr.Request):
        return user_name(request) or owner

    shared.page.load(on_open, components["owner"], components["owner"], **EVENT)
    components["kind"].change(on_kind, components["kind"], [components["noun"], components["agrees"]], **EVENT)
    changes = [component.change for component in fields.inputs] + photos_changed + [shared.base.change]
    gr.on(changes, on_change, fields.inputs, [note, plan], trigger_mode="always_last", **EVENT)
