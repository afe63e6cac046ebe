"""Lay out the training form: the concept's name, the training settings, and the summary of what Start does."""

from __future__ import annotations

import gradio as gr

from ...backend.train.form import KINDS, METHODS, PRIORS, parse_kind
from ...backend.train.page import TrainPage
from ..shared import QUICK_EVENT, SharedComponents, text_line, user_name

KIND, METHOD, PRIOR = next(iter(KINDS)), next(iter(METHODS)), next(iter(PRIORS))
OBJECT_EXAMPLE, PERSON_EXAMPLE, STYLE_EXAMPLE = (
    "for example: toy duck",
    "for example: woman",
    "for example: watercolour",
)


class TrainForm:
    """The form's fields by name. `inputs`: components for an event; `read`: its values by field name."""

    def __init__(self):
        self.components: dict[str, gr.components.Component] = {}

    @property
    def inputs(self) -> list[gr.components.Component]:
        return list(self.components.values())

    def read(self, values: tuple) -> dict:
        return dict(zip(self.components, values, strict=True))


def form_box(owner: str) -> tuple[TrainForm, gr.Textbox]:
    """Lay out the fields and the note on the name; return both. owner: the default owner."""
    fields = TrainForm()
    components = fields.components
    components["kind"] = gr.Radio(list(KINDS), value=KIND, label="What do the photos share?", elem_id="make-kind")
    components["noun"] = gr.Textbox(
        label="What is it?",
        placeholder=OBJECT_EXAMPLE,
        max_length=100,
        elem_id="make-noun",
        lines=1,
        info="The most ordinary word for it.",
    )
    with gr.Row():
        components["owner"] = gr.Textbox(
            owner, label="Your name", max_length=64, max_lines=1, scale=1, min_width=110, elem_id="make-owner"
        )
        components["name"] = gr.Textbox(
            label="Its name",
            placeholder="my-cat",
            max_length=64,
            max_lines=1,
            scale=2,
            min_width=140,
            elem_id="make-name",
        )
    note = text_line("", "make-name-note")
    components["agrees"] = gr.Checkbox(
        label="This person agrees to being in pictures made with it", visible=False, elem_id="make-agrees"
    )
    with gr.Accordion("More", open=False, elem_id="make-more"):
        _advanced_fields(components)
    return fields, note


def _advanced_fields(put: dict) -> None:
    put["method"] = gr.Radio(list(METHODS), value=METHOD, label="Method")
    put["crop"] = gr.Checkbox(label="Cut each photo where its subject seems to be, not in the middle")
    put["flip"] = gr.Checkbox(label="Also learn from mirrored photos (not for faces or writing)")
    put["early_stop"] = gr.Checkbox(True, label="End where there is no more to learn")
    put["text_encoder"] = gr.Checkbox(label="Teach the text encoder too: closer, but mixes worse")
    put["prior"] = gr.Radio(list(PRIORS), value=PRIOR, label="Also keep", info="A step then takes twice as long.")
    with gr.Row():
        put["steps"] = _number_field("Steps, at most", "what suits", "make-steps")
        put["lr"] = _number_field("Learning rate", "what suits", "make-lr")
    with gr.Row():
        put["rank"] = _number_field("LoRA rank", "16", "make-rank")
        put["resolution"] = _number_field("Side in pixels", "the base's own", "make-side")
        put["seed"] = _number_field("Seed", "0", "make-seed")


def _number_field(label: str, placeholder: str, name: str) -> gr.Textbox:
    """Make a text field for a number, since Gradio's number fields cannot be empty."""
    return gr.Textbox(label=label, placeholder=placeholder, max_lines=1, max_length=20, min_width=110, elem_id=name)


def connect_form(
    workshop: TrainPage, shared: SharedComponents, fields: TrainForm, note, plan, photos_changed: list
) -> None:
    """Check the name and update the summary whenever something they depend on changes."""
    components = fields.components

    def on_kind(kind):
        person, style = parse_kind(kind) == "person", parse_kind(kind) == "style"
        example = STYLE_EXAMPLE if style else PERSON_EXAMPLE if person else OBJECT_EXAMPLE
        label = "What is the style, in a word or two?" if style else "What is it?"
        return gr.update(placeholder=example, label=label), gr.update(visible=person)

    def on_change(request: gr.Request, *values):
        form = fields.read(values)
        return workshop.name_note(form), workshop.plan_text(request.session_hash, user_name(request), form)

    def on_open(owner, request: gr.Request):
        return user_name(request) or owner

    shared.page.load(on_open, components["owner"], components["owner"], **QUICK_EVENT)
    components["kind"].change(on_kind, components["kind"], [components["noun"], components["agrees"]], **QUICK_EVENT)
    changes = [component.change for component in fields.inputs] + photos_changed + [shared.base.change]
    gr.on(changes, on_change, fields.inputs, [note, plan], trigger_mode="always_last", **QUICK_EVENT)
